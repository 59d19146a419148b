//! Where keys are trusted, only what one of them signed runs.

use ed25519_compact::{KeyPair, Seed};

use super::guests::*;
use super::*;

/// In minisign's format a key and what it signed share a number of eight bytes.
struct Key {
    pair: KeyPair,
    number: [u8; 8],
}

impl Key {
    fn new(number: u8) -> Self {
        Self { pair: KeyPair::from_seed(Seed::new([number; 32])), number: [number; 8] }
    }

    /// As it stands in the configuration.
    fn public(&self) -> String {
        base64(&[b"Ed", &self.number[..], &self.pair.pk[..]].concat())
    }

    /// What `minisign -S` would write beside a file of this content.
    fn signature(&self, content: &[u8]) -> String {
        let signature = self.pair.sk.sign(content, None);
        let comment = "timestamp:1 file:my-policy.wasm";
        let all = self.pair.sk.sign([&signature[..], comment.as_bytes()].concat(), None);
        let of_content = base64(&[b"Ed", &self.number[..], &signature[..]].concat());
        format!("untrusted comment: a test\n{of_content}\ntrusted comment: {comment}\n{}\n", base64(&all[..]))
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let four = |three: &[u8]| {
        let bits = three.iter().chain(&[0; 2]).take(3).fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        let digit = |at: usize| if at > three.len() { '=' } else { char::from(DIGITS[bits >> (18 - 6 * at) & 63]) };
        [0, 1, 2, 3].map(digit)
    };
    bytes.chunks(3).flat_map(four).collect()
}

fn trusting(keys: &[&Key]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
    format!("{WITH_MY_POLICY}trusted_keys = {keys:?}\n")
}

/// Signs this content as this plugin's, in the folder.
fn sign(folder: &Path, name: &str, content: &[u8], key: &Key) {
    std::fs::write(folder.join(format!("{name}.wasm.minisig")), key.signature(content)).expect("write a signature");
}

/// A proxy that trusts this key and runs what it signed, and sends all to the last backend.
async fn with_signed(key: &Key) -> (Proxy, [Backend; 2]) {
    let backends = [Setup::named("a").start().await, Setup::named("b").start().await];
    let proxy = started(&trusting(&[key]), &backends, |plugins| {
        put(plugins, MY_POLICY, &last_row());
        sign(plugins, MY_POLICY, &last_row(), key);
    })
    .await;
    all_go_to(&proxy, "b").await;
    (proxy, backends)
}

/// Returns when this content is refused for its signature, in these words.
async fn is_refused(proxy: &Proxy, content: &[u8], words: &str) {
    let row = file_is(proxy, MY_POLICY, content, "refused").await;
    let cause = row["last_error"].as_str().expect("a cause");
    assert!(cause.starts_with("signature: ") && cause.contains(words), "{row}");
    assert_eq!(reloads(proxy, MY_POLICY, "refused").await, 1.0);
    eventually("it is in the log", async || proxy.output().contains(words)).await;
}

#[tokio::test]
async fn what_is_not_signed_does_not_run_until_it_is() {
    let key = Key::new(1);
    let (proxy, _backends) = with_signed(&key).await;
    let folder = proxy.plugins_dir();
    std::fs::remove_file(folder.join("my-policy.wasm.minisig")).expect("delete the signature");
    let first_row = picking(OK);
    proxy.write_plugin(MY_POLICY, &first_row);
    file_is(&proxy, MY_POLICY, &first_row, "pending").await;
    is_refused(&proxy, &first_row, "my-policy.wasm.minisig cannot be read").await;
    all_go_to(&proxy, "b").await;
    sign(&folder, MY_POLICY, &first_row, &key);
    runs(&proxy, MY_POLICY, &first_row).await;
    all_go_to(&proxy, "a").await;
}

#[tokio::test]
async fn the_signature_of_another_content_does_not_count() {
    let (proxy, _backends) = with_signed(&Key::new(1)).await;
    let first_row = picking(OK);
    proxy.write_plugin(MY_POLICY, &first_row);
    is_refused(&proxy, &first_row, "not a signature of this content").await;
    all_go_to(&proxy, "b").await;
}

#[tokio::test]
async fn the_signature_of_a_stranger_does_not_count() {
    let (proxy, _backends) = with_signed(&Key::new(1)).await;
    let first_row = picking(OK);
    sign(&proxy.plugins_dir(), MY_POLICY, &first_row, &Key::new(2));
    proxy.write_plugin(MY_POLICY, &first_row);
    is_refused(&proxy, &first_row, "by none of `plugins.trusted_keys`").await;
    all_go_to(&proxy, "b").await;
}

#[tokio::test]
async fn other_keys_hold_for_what_is_loaded_too() {
    let (old, new) = (Key::new(1), Key::new(2));
    let (proxy, backends) = with_signed(&old).await;
    proxy.write_config(&config(&trusting(&[&new]), &backends));
    let is_refused = async || proxy.admin_json("/api/config").await["state"] == "refused";
    eventually("a policy that nobody trusted signed is no policy", is_refused).await;
    all_go_to(&proxy, "b").await;
    proxy.write_config(&config(&trusting(&[&new, &old]), &backends));
    let both = serde_json::json!([new.public(), old.public()]);
    let are_trusted = async || {
        let said = proxy.admin_json("/api/config").await;
        said["state"] == "loaded" && said["config"]["plugins"]["trusted_keys"] == both
    };
    eventually("both keys are trusted", are_trusted).await;
    all_go_to(&proxy, "b").await;
    assert_eq!(active(&proxy, MY_POLICY).await["sha256"], sha256(&last_row()));
}

#[tokio::test]
async fn what_minisign_itself_signed_is_trusted() {
    // Made once: `minisign -GW`, then `minisign -Sm` over this text.
    const TEXT: &[u8] = b"signed, but no plugin\n";
    const PUBLIC: &str = "RWSt452GLbxF2xIFMNFKj7BHct786PEMZRj4fnPk4MRl2OLm6U5zciwg";
    const SIGNATURE: &str = "untrusted comment: signature from minisign secret key\nRUSt452GLbxF27JZVvVQOBStzGPh+npQnQdua4UIe3AHJ1odO1tfyQvadW7uqoQzYFSaWdw9hXi7y465H+qRg9uE0w+rp7L4bgk=\ntrusted comment: timestamp:1795376143\tfile:text\thashed\nyAYJJZM1yHeNn64cCv6pj94nam/vj2ucey3oEQEtLH5qo6AnmerXrRF7M6C9SsBzvC6jdpsLF1j5LNlMYWlgDQ==\n";
    let (proxy, _backends) = proxied(&format!("[plugins]\ntrusted_keys = [{PUBLIC:?}]\n"), ["a"]).await;
    proxy.write_plugin("other", TEXT);
    std::fs::write(proxy.plugins_dir().join("other.wasm.minisig"), SIGNATURE).expect("write a signature");
    let row = file_is(&proxy, "other", TEXT, "refused").await;
    let cause = row["last_error"].as_str().expect("a cause");
    assert!(cause.starts_with("format: "), "only what is signed is looked into: {row}");
}

#[tokio::test]
async fn check_names_what_is_not_signed() {
    let key = Key::new(1);
    let folder = Folder::new();
    let plugins = folder.path().join("plugins");
    std::fs::create_dir(&plugins).expect("the folder of plugins");
    put(&plugins, MY_POLICY, ROUND_ROBIN);
    let top = format!("{}[[backends]]\nurl = \"http://127.0.0.1:1\"\n", trusting(&[&key]));
    let path = folder.write("vision-proxy.toml", top);
    let check = ["check", "--config", path.to_str().expect("a path of text")];
    let checked = vision_proxy(&check, &folder).await;
    assert_eq!(checked.code, 1, "{}", checked.said());
    assert!(checked.stderr.contains("my-policy.wasm.minisig cannot be read"), "{}", checked.said());
    sign(&plugins, MY_POLICY, ROUND_ROBIN, &key);
    let checked = vision_proxy(&check, &folder).await;
    assert_eq!(checked.code, 0, "{}", checked.said());
}
