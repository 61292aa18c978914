//! The shared library and the functions that are looked up in it by name.

use core::ffi::{c_char, c_int, c_void};
use core::fmt;

use libloading::Library;

use crate::objects::{fi_fabric_attr, fi_info, fid, fid_fabric};

/// The name the shared library is opened by; 1.x and 2.x share it.
pub const SONAME: &str = "libfabric.so.1";

/// The functions of libfabric that have names, and the opened library that holds them.
#[derive(Debug)]
pub struct Symbols {
    /// Finds what can be used; the list is freed with `fi_freeinfo`.
    pub fi_getinfo: unsafe extern "C" fn(u32, *const c_char, *const c_char, u64, *const fi_info, *mut *mut fi_info) -> c_int,
    /// Frees a list.
    pub fi_freeinfo: unsafe extern "C" fn(*mut fi_info),
    /// Copies one entry of a list; of null it makes an empty one.
    pub fi_dupinfo: unsafe extern "C" fn(*const fi_info) -> *mut fi_info,
    /// Opens a fabric.
    pub fi_fabric: unsafe extern "C" fn(*mut fi_fabric_attr, *mut *mut fid_fabric, *mut c_void) -> c_int,
    /// Opens one of the objects that have names: version, name, attributes and their length, flags, object, context.
    pub fi_open: unsafe extern "C" fn(u32, *const c_char, *mut c_void, usize, u64, *mut *mut fid, *mut c_void) -> c_int,
    /// The version of the library.
    pub fi_version: unsafe extern "C" fn() -> u32,
    /// The text for a code of an error; the next call may overwrite it.
    pub fi_strerror: unsafe extern "C" fn(c_int) -> *const c_char,
    _library: Library,
}

/// Why the library could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The dynamic linker did not open it.
    NotOpened(libloading::Error),
    /// It lacks a function.
    MissingSymbol {
        /// The function's name.
        name: &'static str,
        /// The dynamic linker's words.
        error: libloading::Error,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOpened(error) => write!(f, "{error}"),
            Self::MissingSymbol { name, error } => write!(f, "{name}: {error}"),
        }
    }
}

impl core::error::Error for OpenError {}

impl Symbols {
    /// Opens the shared library [`SONAME`] by the dynamic linker's rules and looks the functions up.
    ///
    /// # Safety
    /// Opening runs the library's initialisers: what answers to the name must be libfabric, whose functions
    /// have these signatures. All that was made with the functions must be gone when the value is dropped.
    pub unsafe fn open() -> Result<Self, OpenError> {
        // SAFETY: the caller vouches for what answers to the name.
        let library = unsafe { Library::new(SONAME) }.map_err(OpenError::NotOpened)?;
        // SAFETY: the signature is the one in libfabric's manual; likewise below.
        let fi_getinfo = unsafe { symbol(&library, "fi_getinfo") }?;
        // SAFETY: as above.
        let fi_freeinfo = unsafe { symbol(&library, "fi_freeinfo") }?;
        // SAFETY: as above.
        let fi_dupinfo = unsafe { symbol(&library, "fi_dupinfo") }?;
        // SAFETY: as above.
        let fi_fabric = unsafe { symbol(&library, "fi_fabric") }?;
        // SAFETY: as above.
        let fi_open = unsafe { symbol(&library, "fi_open") }?;
        // SAFETY: as above.
        let fi_version = unsafe { symbol(&library, "fi_version") }?;
        // SAFETY: as above.
        let fi_strerror = unsafe { symbol(&library, "fi_strerror") }?;
        Ok(Self { fi_getinfo, fi_freeinfo, fi_dupinfo, fi_fabric, fi_open, fi_version, fi_strerror, _library: library })
    }
}

/// # Safety
/// `T` must be the type of the function of that name, and not outlive the library.
unsafe fn symbol<T: Copy>(library: &Library, name: &'static str) -> Result<T, OpenError> {
    // SAFETY: the caller vouches for the type.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|error| OpenError::MissingSymbol { name, error })
}
