//! From bytes to a checked component.
//!
//! Invariants:
//! - What can be told from the bytes is told before the compiler sees them, and what can be told from the compiled
//!   component before anything of it runs: a reader is told "built for 0.2", not a link error.
//! - A panic of the compiler refuses the component and harms nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};

use sha2::{Digest as _, Sha256};
use wasmtime::component::{Component, InstancePre};

use super::bindings::{policy::PolicyPre, translator::TranslatorPre};
use super::version::World;
use super::wasi::{self, Guest};
use super::{Kind, Refusal, Runtime, Stage};

/// The largest component. A Rust plugin has 60 KiB, a Python one 18 MiB.
pub(super) const COMPONENT_MAX_BYTES: usize = 32 << 20;
/// The interface version this proxy speaks. Patch versions are compatible with each other.
const INTERFACE: &str = "0.1";

const CUSTOM_SECTION: u8 = 0;
/// Of a component: a module, and a component in it.
const MODULE_SECTION: u8 = 1;
const COMPONENT_SECTION: u8 = 4;
/// Of a module: what its functions do.
const CODE_SECTION: u8 = 10;

const HOW_TO_BUILD: &str = "build for wasm32-wasip2 or run `wasm-tools component new`";

/// What is made of a content, whatever name it comes under.
pub struct Compiled {
    /// What it is for.
    pub kind: Kind,
    /// The version of the interface it was built for.
    pub interface: String,
    /// What it imports, as the component names it.
    pub imports: Vec<String>,
    /// Of its functions, in all its modules.
    pub code_bytes: usize,
    pub(super) world: World,
}

/// Checks and compiles a component.
pub(super) fn compile(runtime: &Runtime, bytes: &[u8]) -> Result<Compiled, Refusal> {
    check_format(bytes)?;
    let compiling = catch_unwind(AssertUnwindSafe(|| Component::from_binary(&runtime.engine, bytes)));
    let component = compiling
        .map_err(|_| Refusal::new(Stage::Compile, "the compiler failed on it (a bug of the compiler)"))?
        .map_err(|error| Refusal::new(Stage::Compile, format!("{error:#}")))?;
    let (kind, interface) = kind_of(&exports(runtime, &component))?;
    let imports = imports(runtime, &component);
    check_imports(&imports)?;
    let linked = runtime.linker.instantiate_pre(&component);
    let linked = linked.map_err(|error| Refusal::new(Stage::Imports, format!("{error:#}")))?;
    Ok(Compiled { kind, interface, imports, code_bytes: code_bytes(bytes), world: world(kind, linked)? })
}

/// What tells a content from others for the compiler: its SHA-256 without the custom sections at the top, in which builds
/// that differ in nothing else leave their names and times.
pub fn key(bytes: &[u8]) -> String {
    let Some((preamble, sections)) = bytes.split_first_chunk::<8>() else { return sha256(bytes) };
    let Some(sections) = split(sections) else { return sha256(bytes) };
    let told = sections.iter().filter(|section| section[0] != CUSTOM_SECTION);
    hex(&told.fold(Sha256::new_with_prefix(preamble), Sha256::chain_update).finalize())
}

/// 64 lower-case hex digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// What the bytes alone tell.
pub fn check_format(bytes: &[u8]) -> Result<(), Refusal> {
    let format = |reason: &str| Err(Refusal::new(Stage::Format, reason));
    if bytes.len() > COMPONENT_MAX_BYTES {
        return format(&format!("it has {} bytes, at most {COMPONENT_MAX_BYTES} are loaded", bytes.len()));
    }
    let Some((preamble, sections)) = bytes.split_first_chunk::<8>() else {
        return Err(Refusal::new(Stage::Truncated, format!("it has only {} bytes", bytes.len())));
    };
    match preamble {
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0] => {}
        [0, b'a', b's', b'm', 1, 0, 0, 0] => {
            return format(&format!("it is a core module, not a component: {HOW_TO_BUILD}"));
        }
        [0, b'a', b's', b'm', ..] => {
            return format(&format!("it is of an unknown version of WebAssembly: {HOW_TO_BUILD}"));
        }
        [0x7f, b'E', b'L', b'F', ..] => {
            return format("it is a precompiled file: these are never loaded, take the `.wasm`");
        }
        _ if is_text(bytes) => return format("it is in the text format: run `wasm-tools parse` first"),
        _ => return format(&format!("it is not WebAssembly: {HOW_TO_BUILD}")),
    }
    if split(sections).is_none() {
        return Err(Refusal::new(
            Stage::Truncated,
            format!("it ends in the middle of a section, after {} bytes", bytes.len()),
        ));
    }
    Ok(())
}

fn is_text(bytes: &[u8]) -> bool {
    let start = bytes.trim_ascii_start();
    start.starts_with(b"(") || start.starts_with(b";;")
}

/// The sections, each with its head; `None` where the last one does not end where the bytes do. A section is an id, its
/// size as LEB128, and so many bytes.
fn split(mut sections: &[u8]) -> Option<Vec<&[u8]>> {
    let mut all = Vec::new();
    while let Some((_id, rest)) = sections.split_first() {
        let end = rest.iter().take(5).position(|byte| byte & 0x80 == 0)?;
        let size = rest[..=end].iter().rev().fold(0, |size: u64, byte| size << 7 | u64::from(byte & 0x7f));
        let whole = usize::try_from(size).ok()?.checked_add(end + 2)?;
        let (section, rest) = sections.split_at_checked(whole)?;
        all.push(section);
        sections = rest;
    }
    Some(all)
}

/// Size of the code of a component's functions, those of the components within it included.
fn code_bytes(component: &[u8]) -> usize {
    let (mut code, mut components) = (0, vec![component]);
    while let Some(component) = components.pop() {
        for (id, content) in contents(component) {
            match id {
                MODULE_SECTION => {
                    let functions = contents(content).into_iter().filter(|(id, _)| *id == CODE_SECTION);
                    code += functions.map(|(_, functions)| functions.len()).sum::<usize>();
                }
                COMPONENT_SECTION => components.push(content),
                _ => {}
            }
        }
    }
    code
}

/// The sections behind a preamble: the id of each, and what stands behind its head.
fn contents(bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let sections = bytes.get(8..).and_then(split).unwrap_or_default();
    let content = |section: &[u8]| 1 + section.iter().skip(1).take_while(|&byte| byte & 0x80 != 0).count() + 1;
    sections.into_iter().map(|section| (section[0], &section[content(section)..])).collect()
}

fn exports(runtime: &Runtime, component: &Component) -> Vec<String> {
    component.component_type().exports(&runtime.engine).map(|(name, _)| name.to_owned()).collect()
}

fn imports(runtime: &Runtime, component: &Component) -> Vec<String> {
    component.component_type().imports(&runtime.engine).map(|(name, _)| name.to_owned()).collect()
}

/// What it is for, and the interface version it was built for.
fn kind_of(exports: &[String]) -> Result<(Kind, String), Refusal> {
    let of_kind = |kind: Kind| {
        let version = |export: &String| Some(export.strip_prefix(kind.interface())?.strip_prefix('@')?.to_owned());
        exports.iter().find_map(version).map(|version| (kind, version))
    };
    let (kind, version) = match (of_kind(Kind::Policy), of_kind(Kind::Translator)) {
        (Some(_), Some(_)) => {
            return Err(Refusal::new(
                Stage::Kind,
                "it is policy and translator at once: one component is for one of them",
            ));
        }
        (Some(found), None) | (None, Some(found)) => found,
        (None, None) => {
            let [balance, translate] = [Kind::Policy, Kind::Translator].map(Kind::interface);
            let exports = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
            let reason = format!("it exports neither `{balance}` nor `{translate}`, but {exports}");
            return Err(Refusal::new(Stage::Kind, reason));
        }
    };
    check_interface(&version)?;
    Ok((kind, version))
}

fn check_interface(version: &str) -> Result<(), Refusal> {
    let spoken = version.strip_prefix(INTERFACE).is_some_and(|patch| patch.starts_with('.'));
    if spoken {
        return Ok(());
    }
    let minor = version.rsplit_once('.').map_or(version, |(minor, _patch)| minor);
    Err(Refusal::new(
        Stage::Interface,
        format!("built for {minor} of the plugin interface, this proxy speaks {INTERFACE}"),
    ))
}

fn check_imports(imports: &[String]) -> Result<(), Refusal> {
    for import in imports {
        if let Some(why) = wasi::forbidden(import) {
            return Err(Refusal::new(Stage::Imports, format!("it imports `{import}`: {why}")));
        }
        if let Some((_, version)) = import.strip_prefix("vision-proxy:plugin/").and_then(|name| name.split_once('@')) {
            check_interface(version)?;
        }
    }
    Ok(())
}

/// Finds the functions of its kind.
fn world(kind: Kind, linked: InstancePre<Guest>) -> Result<World, Refusal> {
    let world = match kind {
        Kind::Policy => PolicyPre::new(linked).map(World::Policy),
        Kind::Translator => TranslatorPre::new(linked).map(World::Translator),
    };
    world.map_err(|error| Refusal::new(Stage::Interface, format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::super::guests::{Guest, runtime};
    use super::*;

    fn refusal(bytes: &[u8]) -> (Stage, String) {
        let refusal = runtime().compile("guest", bytes).unwrap_err();
        (refusal.stage, refusal.reason)
    }

    #[test]
    fn what_is_no_component_is_told_what_it_is() {
        let module = wat::parse_str("(module)").unwrap();
        let (stage, reason) = refusal(&module);
        assert_eq!(stage, Stage::Format);
        assert!(reason.contains("core module") && reason.contains("wasm-tools component new"), "{reason}");
        for (bytes, word) in [
            (&b"  (component)"[..], "text format"),
            (b";; a comment", "text format"),
            (b"\x7fELF\x02\x01\x01\x00\x00\x00", "precompiled"),
            (b"\0asm\x0e\0\x01\0", "unknown version"),
            (b"#!/bin/sh\nexit 1", "not WebAssembly"),
        ] {
            let (stage, reason) = refusal(bytes);
            assert_eq!(stage, Stage::Format, "{reason}");
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn a_component_that_breaks_off_anywhere_is_truncated() {
        let whole = Guest::default().policy();
        assert!(split(&whole[8..]).is_some());
        let mut at_section_ends = 0;
        for end in 0..whole.len() {
            match check_format(&whole[..end]) {
                Err(refusal) => assert_eq!(refusal.stage, Stage::Truncated, "after {end} bytes"),
                Ok(()) => at_section_ends += 1,
            }
        }
        assert!(at_section_ends < 100, "{at_section_ends} of {}", whole.len());
        assert_eq!(refusal(&whole[..whole.len() - 1]).0, Stage::Truncated);
    }

    #[test]
    fn custom_sections_at_the_top_are_no_other_content() {
        let plain = Guest::default().policy();
        let with = |id: u8, text: &[u8]| [&plain[..], &[id, text.len() as u8 + 2, 1, b'x'], text].concat();
        assert_eq!(key(&with(0, b"one")), key(&with(0, b"another")));
        assert_eq!(key(&with(0, b"one")), key(&plain));
        assert_ne!(key(&with(1, b"one")), key(&with(1, b"two")));
        assert_ne!(key(&Guest { pick: "unreachable", ..Guest::default() }.policy()), key(&plain));
        assert_ne!(key(b"\0asm\x0d\0\x01\0"), key(b"\0asm\x01\0\0\0"));
    }

    #[test]
    fn code_is_what_functions_do_wherever_they_are() {
        let of = |text: &str| code_bytes(&wat::parse_str(text).unwrap());
        let module = "(core module (func nop nop nop nop) (data \"0123456789\"))";
        let one = of(&format!("(component {module})"));
        assert!((4..14).contains(&one), "{one}");
        assert_eq!(of(&format!("(component {module} (component {module} (component {module})))")), 3 * one);
        assert_eq!((of("(component)"), code_bytes(b""), code_bytes(b"\0asm\x0d\0\x01\0\x01\x7f")), (0, 0, 0));
        let padded =
            [&wat::parse_str(format!("(component {module})")).unwrap()[..], &[0, 0x80, 1, 1, b'x'], &[0; 126]].concat();
        assert_eq!(code_bytes(&padded), one);
    }

    #[test]
    fn a_component_past_the_cap_is_not_compiled() {
        let (stage, reason) = refusal(&vec![0; COMPONENT_MAX_BYTES + 1]);
        assert_eq!(stage, Stage::Format);
        assert!(reason.contains("at most 33554432"), "{reason}");
    }

    #[test]
    fn garbage_after_a_good_preamble_is_refused_by_the_compiler() {
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        bytes.extend([0x63, 2, 0xff, 0xff]);
        assert_eq!(refusal(&bytes).0, Stage::Compile);
    }

    #[test]
    fn the_interface_version_is_told_before_anything_is_linked() {
        let newer = Guest {
            package_version: "0.2.0",
            imports: r#"(import "vision-proxy:plugin/more@0.2.0" (instance))"#,
            ..Guest::default()
        };
        assert_eq!(
            refusal(&newer.policy()),
            (Stage::Interface, "built for 0.2 of the plugin interface, this proxy speaks 0.1".to_owned())
        );
        let patched = Guest { package_version: "0.1.7", ..Guest::default() };
        let version = runtime().compile("guest", &patched.policy()).unwrap();
        assert_eq!((version.kind, version.interface.as_str()), (Kind::Policy, "0.1.7"));
        let mixed = Guest { imports: r#"(import "vision-proxy:plugin/more@0.2.0" (instance))"#, ..Guest::default() };
        assert_eq!(refusal(&mixed.policy()).0, Stage::Interface);
    }

    #[test]
    fn a_component_must_be_one_of_the_two_kinds() {
        let neither =
            wat::parse_str(r#"(component (instance $i) (export "wasi:http/handler@0.2.0" (instance $i)))"#).unwrap();
        let (stage, reason) = refusal(&neither);
        assert_eq!(stage, Stage::Kind);
        assert!(reason.ends_with("but wasi:http/handler@0.2.0"), "{reason}");
        let both = wat::parse_str(
            r#"(component (instance $i) (export "vision-proxy:plugin/balance@0.1.0" (instance $i))
                (export "vision-proxy:plugin/translate@0.1.0" (instance $i)))"#,
        );
        assert_eq!(refusal(&both.unwrap()).0, Stage::Kind);
        let hollow =
            wat::parse_str(r#"(component (instance $i) (export "vision-proxy:plugin/balance@0.1.0" (instance $i)))"#);
        let (stage, reason) = refusal(&hollow.unwrap());
        assert_eq!(stage, Stage::Interface);
        assert!(reason.contains("configure"), "{reason}");
    }

    #[test]
    fn a_forbidden_import_is_named() {
        for import in
            ["wasi:sockets/tcp@0.2.0", "wasi:http/outgoing-handler@0.2.0", "wasi:cli/stdout@0.3.0", "acme:keys/store"]
        {
            let guest = Guest { imports: &format!(r#"(import "{import}" (instance))"#), ..Guest::default() };
            let (stage, reason) = refusal(&guest.policy());
            assert_eq!(stage, Stage::Imports);
            assert!(reason.contains(import), "{reason}");
        }
        let missing = r#"(import "wasi:cli/environment@0.2.0" (instance (export "get-secrets" (func))))"#;
        let (stage, reason) = refusal(&Guest { imports: missing, ..Guest::default() }.policy());
        assert_eq!(stage, Stage::Imports);
        assert!(reason.contains("get-secrets"), "{reason}");
    }

    #[test]
    fn a_version_knows_what_it_is() {
        let bytes = Guest::default().translator();
        let version = runtime().compile("mapper", &bytes).unwrap();
        assert_eq!(
            (version.name.as_str(), version.kind, version.size_bytes),
            ("mapper", Kind::Translator, bytes.len())
        );
        assert_eq!(version.sha256, sha256(&bytes));
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert!(version.imports.iter().any(|import| import == "wasi:cli/stderr@0.2.0"), "{:?}", version.imports);
    }
}
