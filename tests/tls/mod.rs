//! TLS on both sides: applications speak it with the proxy, and the proxy with backends; nothing is insecure silently.

mod backends;
mod clients;
mod rotation;
mod trust;
