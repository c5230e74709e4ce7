//! Where samples stay.
pub mod codec;
