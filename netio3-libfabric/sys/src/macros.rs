//! The lists of structures, constants and calls are macros, so that the layout test can go through them all.

/// Declares structures of C and, for the layout test, the table `LAYOUT` of all their fields.
macro_rules! structures {
    ($($(#[$about:meta])* struct $name:ident { $($field:ident: $kind:ty,)* })*) => {
        $(
            $(#[$about])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub struct $name {
                $(#[allow(missing_docs)] pub $field: $kind,)*
            }
        )*

        pub(crate) static LAYOUT: &[crate::layout::Structure] = &[$(
            crate::layout::Structure {
                name: stringify!($name),
                size: core::mem::size_of::<$name>(),
                fields: &[$(
                    crate::layout::Field {
                        name: stringify!($field),
                        offset: core::mem::offset_of!($name, $field),
                        size: core::mem::size_of::<$kind>(),
                    },
                )*],
            },
        )*];
    };
}

/// Declares constants and, for the layout test, the table `VALUES` of them all.
macro_rules! constants {
    ($(#[$about:meta] $kind:ident { $($name:ident = $value:expr,)* })*) => {
        $($(
            #[$about]
            pub const $name: $kind = $value;
        )*)*

        pub(crate) static VALUES: &[crate::layout::Constant] = &[
            $($(crate::layout::Constant { name: stringify!($name), value: $name as u64 },)*)*
        ];
    };
}

/// Declares calls through an object's table of functions: `name(object, arguments) -> result = table.function;`.
///
/// An entry that the provider left empty answers `-FI_ENOSYS`.
macro_rules! calls {
    ($($(#[$about:meta])* fn $name:ident($object:ident: $class:ty $(, $argument:ident: $kind:ty)*) -> $result:ty
        = $table:ident.$function:ident;)*) => {
        $(
            $(#[$about])*
            ///
            /// # Safety
            /// The object must be open, its parents too, and the arguments as libfabric's manual wants them.
            #[allow(clippy::too_many_arguments)] // they are C's
            pub unsafe fn $name($object: *mut $class $(, $argument: $kind)*) -> $result {
                // SAFETY: the object is open, so its head is readable.
                let table = unsafe { (*$object).$table };
                // SAFETY: an open object's tables are readable as far as version 1.14 has them, and this
                // entry is one of those.
                let function = unsafe { (*table).$function };
                match function {
                    // SAFETY: the object's own function, with what the caller vouches for.
                    Some(function) => unsafe { function($object.cast() $(, $argument)*) },
                    None => -(crate::FI_ENOSYS as $result),
                }
            }
        )*
    };
}
