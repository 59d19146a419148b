//! Every engine with every page but that of its health spoilt in every way: what it says of its load is unknown then, never
//! idle and never full, and it stays in use.

use super::*;

const HTML: &[u8] = b"<!doctype html><html><body><h1>It works!</h1><p>0 of 0</p></body></html>";
const OFF: &[u8] = br#"{"error":{"code":501,"message":"This server does not support metrics endpoint.","type":"not_supported_error"}}"#;

const NO_BODY: &[u8] = b"";

/// Where slots are said to be at work or not, without a number.
const SLOTS: &str = "/slots";

/// What stands where a number should.
const NO_NUMBERS: [&str; 9] =
    ["NaN", "-1", "-1e300", "1e300", "+Inf", "3000000000", "18446744073709551616", "2.5", "\"many\""];

/// An engine that works, by its own true answers; its health first. None of its numbers is 0.
const ENGINES: [(Engine, Answers<'static>); 13] = [
    (Engine::Vllm, &[("/health", 200, NO_BODY), ("/v1/models", 200, VLLM_MODELS), ("/metrics", 200, VLLM_FULL)]),
    (
        Engine::Sglang,
        &[
            ("/health", 200, NO_BODY),
            ("/v1/models", 200, SGLANG_MODELS),
            ("/v1/loads?include=core", 200, SGLANG_LOADS),
            ("/metrics", 200, SGLANG_METRICS),
        ],
    ),
    (
        Engine::LlamaCpp,
        &[
            ("/health", 200, br#"{"status":"ok"}"#),
            ("/v1/models", 200, LLAMA_MODELS),
            ("/props", 200, LLAMA_PROPS),
            ("/metrics", 200, LLAMA_METRICS),
        ],
    ),
    (
        Engine::LlamaCpp,
        &[("/health", 200, br#"{"status":"ok"}"#), ("/v1/models", 200, LLAMA_MODELS), (SLOTS, 200, LLAMA_SLOTS)],
    ),
    (
        Engine::Ollama,
        &[
            ("/api/version", 200, br#"{"version":"0.31.1"}"#),
            ("/api/tags", 200, OLLAMA_TAGS),
            ("/api/ps", 200, OLLAMA_PS),
        ],
    ),
    (Engine::Tgi, &[("/health", 200, NO_BODY), ("/info", 200, TGI_INFO), ("/metrics", 200, TGI_METRICS)]),
    (
        Engine::TrtLlm,
        &[("/health", 200, NO_BODY), ("/v1/models", 200, TRTLLM_MODELS), ("/prometheus/metrics", 200, TRTLLM_METRICS)],
    ),
    (
        Engine::Triton,
        &[("/health/ready", 200, NO_BODY), ("/v1/models", 200, TRITON_MODELS), ("/metrics", 200, TRITON_METRICS)],
    ),
    (
        Engine::LmDeploy,
        &[
            ("/health", 200, br#"{"status":"healthy","message":""}"#),
            ("/v1/models", 200, LMDEPLOY_MODELS),
            ("/metrics", 200, LMDEPLOY_METRICS),
        ],
    ),
    (
        Engine::LmStudio,
        &[
            ("/v1/models", 200, LM_STUDIO_MODELS),
            ("/api/v1/models", 200, LM_STUDIO_DETAILS_V1),
            ("/api/v0/models", 200, LM_STUDIO_DETAILS),
        ],
    ),
    (
        Engine::Nim,
        &[("/v1/health/ready", 200, NO_BODY), ("/v1/models", 200, NIM_MODELS), ("/v1/metrics", 200, NIM_METRICS)],
    ),
    (
        Engine::Nim,
        &[("/v1/health/ready", 200, NO_BODY), ("/v1/models", 200, VLLM_MODELS), ("/v1/metrics", 200, VLLM_FULL)],
    ),
    (Engine::OpenAi, &[("/v1/models", 200, VLLM_MODELS)]),
];

type Load = (Option<u32>, Option<u32>, Option<u32>, Option<f64>);

fn load(report: &Report) -> Load {
    (report.running, report.waiting, report.limit, report.kv_cache_used)
}

/// The same engine, with all but its health spoilt.
fn spoilt(pages: Answers<'_>, how: impl Fn(&[u8]) -> (u16, Vec<u8>)) -> Vec<(&str, u16, Vec<u8>)> {
    let page = |(at, (path, status, body)): (usize, &(_, u16, &[u8]))| {
        let (status, body) = if at == 0 { (*status, body.to_vec()) } else { how(body) };
        (*path, status, body)
    };
    pages.iter().enumerate().map(page).collect()
}

fn ask_spoilt(engine: Engine, pages: &[(&str, u16, Vec<u8>)]) -> Report {
    let pages: Vec<_> = pages.iter().map(|(path, status, body)| (*path, *status, body.as_slice())).collect();
    ask(engine, &pages)
}

/// Every number replaced: in a text those behind a space, in JSON those behind a colon.
fn with_numbers(body: &[u8], instead: &str) -> Vec<u8> {
    let mut spoilt = Vec::new();
    let (mut before, mut is_number) = (b'\n', false);
    for byte in body {
        let is_digit = byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+' | b'e');
        is_number = if is_number { is_digit } else { byte.is_ascii_digit() && matches!(before, b' ' | b':') };
        if !is_number {
            spoilt.push(*byte);
        } else if matches!(before, b' ' | b':') {
            spoilt.extend(instead.as_bytes());
        }
        before = *byte;
    }
    spoilt
}

#[test]
fn true_answers_have_no_zero_to_be_taken_for_a_bad_one() {
    for (engine, pages) in ENGINES {
        let (running, waiting, limit, kv_cache_used) = load(&ask(engine, pages));
        assert!(![running, waiting, limit].contains(&Some(0)) && kv_cache_used != Some(0.0), "{engine:?}");
        let silent = matches!(engine, Engine::Ollama | Engine::LmStudio | Engine::OpenAi);
        assert_eq!(running.is_none(), silent, "{engine:?}");
    }
    let told = Engine::ALL.iter().filter(|engine| ENGINES.iter().any(|(of, _)| of == *engine)).count();
    assert_eq!(told, Engine::ALL.len(), "an engine without a true answer");
}

#[test]
fn what_is_no_report_is_unknown() {
    let kinds: [(&str, u16, Option<&[u8]>); 8] = [
        ("absent", 404, Some(b"Not Found")),
        ("disabled", 501, Some(OFF)),
        ("refused", 401, None),
        ("failed", 500, None),
        ("empty", 200, Some(b"")),
        ("HTML", 200, Some(HTML)),
        ("of somebody else", 200, Some(b"# TYPE python_info gauge\npython_info{version=\"3.12\"} 1.0\n")),
        ("other JSON", 200, Some(br#"{"error":"Unexpected endpoint or method."}"#)),
    ];
    for (engine, pages) in ENGINES {
        for (kind, status, body) in kinds {
            // Some keep their body: it is the status that says that it is none.
            let report = ask_spoilt(engine, &spoilt(pages, |told| (status, body.unwrap_or(told).to_vec())));
            assert_eq!(load(&report), (None, None, None, None), "{engine:?}, {kind}");
            assert_eq!(report.health, Health::Ready, "{engine:?}, {kind}");
        }
    }
}

#[test]
fn what_is_no_number_is_unknown() {
    for (engine, pages) in ENGINES {
        let is_told_without = pages.iter().any(|(path, ..)| *path == SLOTS);
        for instead in NO_NUMBERS {
            let is_json = !matches!(instead, "NaN" | "+Inf");
            let read = if is_told_without && is_json { load(&ask(engine, pages)) } else { (None, None, None, None) };
            let report = ask_spoilt(engine, &spoilt(pages, |told| (200, with_numbers(told, instead))));
            assert_eq!(load(&report), read, "{engine:?}, {instead}");
            assert_eq!(report.health, Health::Ready, "{engine:?}, {instead}");
        }
    }
}
