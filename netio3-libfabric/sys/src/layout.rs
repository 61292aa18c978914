//! What the layout test compares: every structure, field and constant of this crate.

/// A structure.
#[derive(Debug)]
pub struct Structure {
    /// Its name, without `struct`.
    pub name: &'static str,
    /// Its size in bytes.
    pub size: usize,
    /// Its fields.
    pub fields: &'static [Field],
}

/// A field of a structure.
#[derive(Debug)]
pub struct Field {
    /// Its name, as written in Rust (`r#type`).
    pub name: &'static str,
    /// Its offset in bytes.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
}

/// A constant.
#[derive(Debug)]
pub struct Constant {
    /// Its name.
    pub name: &'static str,
    /// Its value, widened without sign.
    pub value: u64,
}

/// The structures whose size is the same in all versions.
pub fn plain_structures() -> &'static [Structure] {
    crate::plain::LAYOUT
}

/// The structures that newer versions may have made longer.
pub fn growing_structures() -> impl Iterator<Item = &'static Structure> {
    crate::roomy::LAYOUT.iter().chain(crate::objects::LAYOUT)
}

/// The constants.
pub fn constants() -> &'static [Constant] {
    crate::constants::VALUES
}
