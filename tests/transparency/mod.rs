//! Between client and backend the proxy changes what it says it changes, and nothing else.

mod headers;
mod paths;
mod protocols;
