//! netio3
