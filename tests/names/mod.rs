//! One public name before, native names behind: translated there and back, and no other byte changed.

mod answers;
mod catalog;
mod multipart;
mod requests;
