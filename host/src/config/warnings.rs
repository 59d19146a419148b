//! What a configuration allows and should not go unsaid: said by `check`, at the start and after a reload. Pure.

use std::net::IpAddr;
use std::time::SystemTime;

use super::{BackendConfig, BackendUrl, Config};

/// What names end with that no public server has (RFC 6762 and 8375, ICANN's `internal`, and what is usual).
const PRIVATE_ENDS: [&str; 6] = [".local", ".internal", ".home.arpa", ".lan", ".svc", ".localhost"];

impl Config {
    /// What is allowed and should not go unsaid, at this moment.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let mut warnings = self.tls_warnings(now);
        let with_key = || self.backends.iter().filter(|backend| backend.api_key.is_some());
        let in_clear = |backend: &BackendConfig| !backend.url.is_https && is_public(&backend.url);
        warnings.extend(with_key().filter(|backend| in_clear(backend)).map(|backend| {
            let name = &backend.name;
            format!("backend {name:?}: its api_key goes in clear text to a public address; use https://")
        }));
        let asks_nobody = self.keys.is_empty() && self.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none());
        if let Some(backend) = with_key().next().filter(|_| asks_nobody && !self.listen.ip().is_loopback()) {
            let (listen, name) = (self.listen, &backend.name);
            warnings.push(format!(
                "whoever reaches {listen} can spend the api_key of backend {name:?}: there are no [[keys]]"
            ));
        }
        warnings
    }
}

/// Whether the way there leads over the internet, as far as the address says.
fn is_public(url: &BackendUrl) -> bool {
    match url.host.parse() {
        Ok(IpAddr::V4(ip)) => {
            let [first, second, ..] = ip.octets();
            // 100.64.0.0/10 is shared by a carrier's customers, and what overlay networks take (RFC 6598).
            let is_shared = first == 100 && second & 0xc0 == 64;
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || is_shared)
        }
        Ok(IpAddr::V6(ip)) => {
            !(ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified())
        }
        // One without a dot is a neighbour's.
        Err(_) => url.host.contains('.') && !PRIVATE_ENDS.iter().any(|end| url.host.ends_with(end)),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Overrides, parse};

    use super::*;

    fn warned(top: &str, url: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "sk-x").unwrap();
        let text = format!("{top}\n[[backends]]\nname = \"a\"\nurl = \"{url}\"\napi_key = {{ file = \"key\" }}\n");
        let config = parse(&text, Some(&folder.path().join("vision-proxy.toml")), &Overrides::default()).unwrap();
        config.warnings(SystemTime::now())
    }

    #[test]
    fn a_key_in_clear_text_over_the_internet() {
        for url in ["http://203.0.113.7:8000", "http://[2001:db8::1]", "http://api.example.com/v1"] {
            let [warning] = &*warned("", url) else { panic!("{url}") };
            assert!(warning.contains("\"a\"") && warning.contains("clear text"), "{warning}");
        }
        for url in [
            "https://203.0.113.7",
            "http://10.0.0.1:8000",
            "http://100.64.0.1",
            "http://127.0.0.1",
            "http://[fd00::1]",
            "http://gpu-a:8000",
            "http://vllm.default.svc",
            "http://gpu.local",
        ] {
            assert_eq!(warned("", url), [""; 0], "{url}");
        }
    }

    #[test]
    fn a_key_that_everybody_spends() {
        let keys = format!("[[keys]]\nname = \"a\"\nsha256 = \"{}\"\n", "0".repeat(64));
        let open = "listen = \"0.0.0.0:8080\"";
        let [warning] = &*warned(open, "https://api.example.com") else { panic!("one warning") };
        assert!(warning.contains("0.0.0.0:8080") && warning.contains("[[keys]]"), "{warning}");
        assert_eq!(warned(open, "http://api.example.com").len(), 2);
        assert_eq!(warned(&format!("{open}\n{keys}"), "https://api.example.com"), [""; 0]);
    }
}
