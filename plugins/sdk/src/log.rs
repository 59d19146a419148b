//! Lines in the proxy's log.

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// For whoever works on the plugin.
    Debug,
    /// Worth knowing, nothing to do.
    Info,
    /// Something an operator should look at.
    Warn,
    /// The plugin cannot do what it is for.
    Error,
}

/// Writes a line to the proxy's log under the plugin's name; natively to standard error. Lines past 4 KiB are cut,
/// and past 20 in a second they are counted and dropped.
pub fn log(level: Level, message: &str) {
    #[cfg(target_family = "wasm")]
    crate::wasm::log(level, message);
    #[cfg(not(target_family = "wasm"))]
    eprintln!("{level:?}: {message}");
}
