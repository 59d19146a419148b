//! A backend that breaks costs no request that another one can still answer, and nothing is ever spliced.

mod blame;
mod connections;
mod endings;
mod retries;
