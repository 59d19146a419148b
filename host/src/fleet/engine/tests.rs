//! The interface as the poller uses it: whole rounds, recognition by true answers, and nonsense of all kinds.

use super::*;

mod bad_reports;

/// What a backend answers, by path.
pub(super) type Answers<'a> = &'a [(&'a str, u16, &'a [u8])];

const VLLM_MODELS: &[u8] = include_bytes!("golden/vllm_models.json");
const VLLM_IDLE: &[u8] = include_bytes!("golden/vllm_metrics_idle.txt");
const VLLM_FULL: &[u8] = include_bytes!("golden/vllm_metrics_full.txt");
const LLAMA_MODELS: &[u8] = include_bytes!("golden/llama_models.json");
const LLAMA_ROUTER: &[u8] = include_bytes!("golden/llama_models_router.json");
const LLAMA_PROPS: &[u8] = include_bytes!("golden/llama_props.json");
const LLAMA_SLOTS: &[u8] = include_bytes!("golden/llama_slots_2_of_3.json");
const LLAMA_METRICS: &[u8] = include_bytes!("golden/llama_metrics_full.txt");
const LLAMA_LOADING: &[u8] = include_bytes!("golden/llama_loading.json");
const SGLANG_MODELS: &[u8] = include_bytes!("golden/sglang_models.json");
const SGLANG_LOADS: &[u8] = include_bytes!("golden/sglang_loads.json");
const SGLANG_METRICS: &[u8] = include_bytes!("golden/sglang_metrics.txt");
const OLLAMA_TAGS: &[u8] = include_bytes!("golden/ollama_tags.json");
const OLLAMA_PS: &[u8] = include_bytes!("golden/ollama_ps.json");
const TGI_INFO: &[u8] = include_bytes!("golden/tgi_info.json");
const TGI_MODELS: &[u8] = include_bytes!("golden/tgi_models.json");
const TGI_METRICS: &[u8] = include_bytes!("golden/tgi_metrics.txt");
const TRTLLM_MODELS: &[u8] = include_bytes!("golden/trtllm_models.json");
const TRTLLM_METRICS: &[u8] = include_bytes!("golden/trtllm_metrics.txt");
const TRITON_MODELS: &[u8] = include_bytes!("golden/triton_models.json");
const TRITON_METRICS: &[u8] = include_bytes!("golden/triton_metrics.txt");
const LMDEPLOY_MODELS: &[u8] = include_bytes!("golden/lmdeploy_models.json");
const LMDEPLOY_METRICS: &[u8] = include_bytes!("golden/lmdeploy_metrics.txt");
const LM_STUDIO_MODELS: &[u8] = include_bytes!("golden/lm_studio_models.json");
const LM_STUDIO_DETAILS: &[u8] = include_bytes!("golden/lm_studio_details.json");
const LM_STUDIO_DETAILS_V1: &[u8] = include_bytes!("golden/lm_studio_details_v1.json");
const NIM_MODELS: &[u8] = include_bytes!("golden/nim_models.json");
const NIM_METADATA: &[u8] = include_bytes!("golden/nim_metadata.json");
const NIM_METRICS: &[u8] = include_bytes!("golden/nim_metrics.txt");

const GOLDEN: [&[u8]; 29] = [
    VLLM_MODELS,
    VLLM_IDLE,
    VLLM_FULL,
    LLAMA_MODELS,
    LLAMA_ROUTER,
    LLAMA_PROPS,
    LLAMA_SLOTS,
    LLAMA_METRICS,
    LLAMA_LOADING,
    SGLANG_MODELS,
    SGLANG_LOADS,
    SGLANG_METRICS,
    OLLAMA_TAGS,
    OLLAMA_PS,
    TGI_INFO,
    TGI_MODELS,
    TGI_METRICS,
    TRTLLM_MODELS,
    TRTLLM_METRICS,
    TRITON_MODELS,
    TRITON_METRICS,
    LMDEPLOY_MODELS,
    LMDEPLOY_METRICS,
    LM_STUDIO_MODELS,
    LM_STUDIO_DETAILS,
    LM_STUDIO_DETAILS_V1,
    NIM_MODELS,
    NIM_METADATA,
    NIM_METRICS,
];

/// One round of questions; a path that is not there is a question without an answer.
pub(super) fn ask(engine: Engine, answers: Answers<'_>) -> Report {
    let mut report = Report::default();
    read(questions(engine), "", answers, &mut report);
    if let Some(routed) = &report.routed {
        let mut of_models = vec![Report::default(); routed.len()];
        for (query, of_model) in routed.iter().zip(&mut of_models) {
            read(OF_EACH_MODEL, query, answers, of_model);
        }
        report.sum_up(&of_models);
    }
    report
}

fn read(questions: &[Question], query: &str, answers: Answers<'_>, report: &mut Report) {
    for question in questions {
        let answer = answers.iter().find(|(path, ..)| path.strip_suffix(query) == Some(question.path));
        if let (Some((_, status, body)), true) = (answer, (question.wanted)(report)) {
            (question.read)(&Answer { status: *status, body }, report);
        }
    }
}

/// Expositions in which none of these metrics has a sensible value.
pub(super) fn odd_answers(names: &[&str]) -> Vec<String> {
    let absent = ["".to_owned(), "<html><body>It works!</body></html>".to_owned(), "python_info 1.0\n".to_owned()];
    let commented = names.iter().map(|name| format!("# HELP {name} x\n# TYPE {name} gauge\n")).collect();
    let longer = names.iter().map(|name| format!("{name}_total 3\nx{name} 3\n")).collect();
    let values = ["NaN", "-1", "+Inf", "3000000000", "1e99", "2.5", "many", ""];
    let odd = values.map(|value| names.iter().map(|name| format!("{name}{{model_name=\"m\"}} {value}\n")).collect());
    absent.into_iter().chain([commented, longer]).chain(odd).collect()
}

pub(super) fn natives(report: &Report) -> Vec<&str> {
    report.models.iter().flatten().map(|model| model.native.as_str()).collect()
}

/// What the probes make of a backend that answers 404 to what is not listed.
fn recognise(answers: Answers<'_>) -> Engine {
    let says = |probe: &&Probe| {
        let answer = answers.iter().find(|(path, ..)| *path == probe.path);
        let (status, body) = answer.map_or((404, b"Not Found".as_slice()), |(_, status, body)| (*status, *body));
        (probe.is)(&Answer { status, body })
    };
    PROBES.iter().find(says).map_or(Engine::OpenAi, |probe| probe.engine)
}

#[test]
fn the_first_question_is_about_health_and_always_asked() {
    for engine in Engine::ALL {
        let first = &questions(engine)[0];
        let mut report = Report::default();
        assert!((first.wanted)(&report), "{engine:?}");
        (first.read)(&Answer { status: 500, body: b"" }, &mut report);
        assert_eq!(report.health, Health::NotReady("answered 500".into()), "{engine:?}");
        assert!(questions(engine)[1..].iter().all(|question| !(question.wanted)(&report)), "{engine:?}");
    }
}

#[test]
fn paths_are_paths() {
    let asked = Engine::ALL.iter().flat_map(|engine| questions(*engine)).map(|question| question.path);
    for path in asked.chain(PROBES.iter().map(|probe| probe.path)) {
        assert!(path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()), "{path}");
    }
}

/// What a backend is asked at most, in this order, before nothing known is behind it.
#[test]
fn probes_ask_few_paths() {
    let mut paths: Vec<_> = PROBES.iter().map(|probe| probe.path).collect();
    let mut seen = std::collections::HashSet::new();
    paths.retain(|path| seen.insert(*path));
    assert_eq!(paths, ["/v1/models", "/v1/metadata", "/", "/metrics", "/info"]);
}

#[test]
fn every_engine_can_be_recognised_and_says_why_it_may_have_no_load() {
    for engine in Engine::ALL {
        assert_eq!(PROBES.iter().any(|probe| probe.engine == engine), engine != Engine::OpenAi, "{engine:?}");
        let silent = matches!(engine, Engine::Ollama | Engine::LmStudio | Engine::OpenAi);
        assert_eq!(why_no_load(engine).is_none(), silent, "{engine:?}");
    }
}

/// The list of models where a key is needed that we do not have.
const NO_KEY: (&str, u16, &[u8]) = ("/v1/models", 401, br#"{"error":"Unauthorized"}"#);

#[test]
fn true_answers_tell_the_engines_apart() {
    let cases: &[(&str, Engine, Answers<'_>)] = &[
        ("vLLM", Engine::Vllm, &[("/v1/models", 200, VLLM_MODELS), ("/metrics", 200, VLLM_IDLE)]),
        (
            "vLLM, no statistics",
            Engine::Vllm,
            &[("/v1/models", 200, VLLM_MODELS), ("/metrics", 200, b"python_info 1.0\n")],
        ),
        ("vLLM, key unknown", Engine::Vllm, &[NO_KEY, ("/metrics", 200, VLLM_IDLE)]),
        ("SGLang", Engine::Sglang, &[("/v1/models", 200, SGLANG_MODELS)]),
        (
            "SGLang, Ollama's API too",
            Engine::Sglang,
            &[("/v1/models", 200, SGLANG_MODELS), ("/", 200, b"Ollama is running")],
        ),
        ("SGLang, greeting", Engine::Sglang, &[NO_KEY, ("/", 200, b"\"SGLang is running\"")]),
        ("SGLang, key unknown", Engine::Sglang, &[NO_KEY, ("/metrics", 200, SGLANG_METRICS)]),
        ("SGLang, new prefix", Engine::Sglang, &[NO_KEY, ("/metrics", 200, b"sglang_token_usage 0.1\n")]),
        ("llama.cpp", Engine::LlamaCpp, &[("/v1/models", 200, LLAMA_MODELS), ("/", 200, b"<!doctype html><html>")]),
        ("llama.cpp, router", Engine::LlamaCpp, &[("/v1/models", 200, LLAMA_ROUTER)]),
        (
            "llama.cpp, loading",
            Engine::LlamaCpp,
            &[("/v1/models", 503, LLAMA_LOADING), ("/metrics", 503, LLAMA_LOADING)],
        ),
        ("llama.cpp, key unknown", Engine::LlamaCpp, &[NO_KEY, ("/metrics", 200, LLAMA_METRICS)]),
        (
            "Ollama",
            Engine::Ollama,
            &[
                ("/v1/models", 200, br#"{"data":[{"id":"mistral:latest","owned_by":"library"}]}"#),
                ("/", 200, b"Ollama is running"),
            ],
        ),
        (
            "Ollama, no model",
            Engine::Ollama,
            &[("/v1/models", 200, br#"{"data":null}"#), ("/", 200, b"Ollama is running")],
        ),
        ("something else", Engine::OpenAi, &[("/v1/models", 200, br#"{"data":[{"id":"gpt","owned_by":"openai"}]}"#)]),
        ("Open WebUI", Engine::OpenAi, &[("/", 200, b"<html>"), ("/api/version", 200, br#"{"version":"0.6.5"}"#)]),
        ("nothing known", Engine::OpenAi, &[]),
        ("no models", Engine::OpenAi, &[("/v1/models", 200, br#"{"data":[]}"#)]),
        (
            "starting",
            Engine::OpenAi,
            &[("/v1/models", 503, b""), ("/", 503, b"Ollama is running"), ("/metrics", 503, VLLM_IDLE)],
        ),
        (
            "a gateway before both",
            Engine::OpenAi,
            &[("/v1/models", 200, br#"{"data":[{"id":"a","owned_by":"vllm"},{"id":"b","owned_by":"sglang"}]}"#)],
        ),
    ];
    for (name, engine, answers) in cases {
        assert_eq!(recognise(answers), *engine, "{name}");
    }
}

#[test]
fn true_answers_tell_the_other_engines_apart() {
    let cases: &[(&str, Engine, Answers<'_>)] = &[
        ("TGI", Engine::Tgi, &[("/v1/models", 200, TGI_MODELS), ("/", 200, b"")]),
        ("TGI without a list", Engine::Tgi, &[("/", 200, b""), ("/info", 200, TGI_INFO)]),
        ("TGI, by its metrics", Engine::Tgi, &[NO_KEY, ("/metrics", 200, TGI_METRICS)]),
        ("trtllm-serve", Engine::TrtLlm, &[("/v1/models", 200, TRTLLM_MODELS), ("/metrics", 200, b"[]")]),
        ("Triton", Engine::Triton, &[("/v1/models", 200, TRITON_MODELS), ("/metrics", 200, TRITON_METRICS)]),
        ("Triton, key unknown", Engine::Triton, &[NO_KEY, ("/metrics", 200, TRITON_METRICS)]),
        (
            "Triton with a vLLM inside, key unknown",
            Engine::Triton,
            &[NO_KEY, ("/metrics", 200, b"vllm:num_requests_running 1\nnv_inference_count{model=\"m\"} 1\n")],
        ),
        ("LMDeploy", Engine::LmDeploy, &[("/v1/models", 200, LMDEPLOY_MODELS)]),
        ("LMDeploy, key unknown", Engine::LmDeploy, &[NO_KEY, ("/metrics", 200, LMDEPLOY_METRICS)]),
        (
            "LM Studio",
            Engine::LmStudio,
            &[
                ("/v1/models", 200, LM_STUDIO_MODELS),
                ("/", 200, br#"{"error":"Unexpected endpoint or method. (GET /)"}"#),
            ],
        ),
        ("NIM", Engine::Nim, &[("/v1/models", 200, NIM_MODELS), ("/v1/metadata", 200, NIM_METADATA)]),
        (
            "NIM with a vLLM inside",
            Engine::Nim,
            &[("/v1/models", 200, VLLM_MODELS), ("/v1/metadata", 200, NIM_METADATA)],
        ),
        (
            "NIM with an SGLang inside",
            Engine::Nim,
            &[("/v1/models", 200, SGLANG_MODELS), ("/v1/metadata", 200, NIM_METADATA)],
        ),
    ];
    for (name, engine, answers) in cases {
        assert_eq!(recognise(answers), *engine, "{name}");
    }
}

#[test]
fn a_greeting_is_the_whole_answer() {
    for (status, body, is) in [
        (200, b"Ollama is running".as_slice(), true),
        (200, b"Ollama is running\n", true),
        (200, b"\"Ollama is running\"", true),
        (404, b"Ollama is running", false),
        (200, b"<html>Ollama is running</html>", false),
        (200, b"\"", false),
        (200, b"", false),
    ] {
        assert_eq!(greets(&Answer { status, body }, "Ollama is running"), is, "{status} {body:?}");
    }
}

/// The bench's mock answers everyone's paths, and means to be a vLLM.
#[test]
fn the_bench_mock_is_a_vllm() {
    let models = br#"{"object":"list","data":[{"id":"mock","object":"model","created":1,"owned_by":"vllm","root":"mock","max_model_len":8192}]}"#;
    let metrics = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name=\"mock\"} 2\n\
        # TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{model_name=\"mock\"} 0\n\
        # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{model_name=\"mock\"} 0.0\n";
    let ok = br#"{"status":"ok"}"#;
    let answers: Answers<'_> = &[
        ("/health", 200, ok),
        ("/", 200, ok),
        ("/v1/models", 200, models),
        ("/get_model_info", 200, br#"{"model_path":"mock","is_generation":true}"#),
        ("/version", 200, br#"{"version":"0.11.0"}"#),
        ("/metrics", 200, metrics),
    ];
    assert_eq!(recognise(answers), Engine::Vllm);
    let report = ask(Engine::Vllm, answers);
    assert_eq!((report.running, report.waiting, report.kv_cache_used), (Some(2), Some(0), Some(0.0)));
    assert_eq!((report.health.clone(), natives(&report)), (Health::Ready, vec!["mock"]));
}

/// Any engine may be configured for any backend; what another engine answers must not be taken for numbers.
#[test]
fn a_wrong_engine_reads_no_load() {
    let vllm: Answers<'_> = &[("/health", 200, b""), ("/v1/models", 200, VLLM_MODELS), ("/metrics", 200, VLLM_FULL)];
    let others = [Engine::Sglang, Engine::LlamaCpp, Engine::TrtLlm, Engine::LmDeploy, Engine::LmStudio, Engine::OpenAi];
    for engine in others {
        let report = ask(engine, vllm);
        assert_eq!(
            (report.running, report.waiting, report.limit, report.kv_cache_used),
            (None, None, None, None),
            "{engine:?}"
        );
        assert_eq!((report.health.clone(), natives(&report)), (Health::Ready, vec!["tiny-a"]), "{engine:?}");
    }
}

/// Whatever arrives is read or not, but never breaks a reader or its promises.
fn check_all_readers(body: &[u8]) {
    for status in [200, 404, 503] {
        let answer = Answer { status, body };
        for probe in PROBES {
            (probe.is)(&answer);
        }
        for engine in Engine::ALL {
            let mut report = Report::default();
            for question in questions(engine) {
                (question.read)(&answer, &mut report);
            }
            let counts = [report.running, report.waiting, report.limit];
            assert!(counts.iter().flatten().all(|count| *count <= 1 << 31), "{report:?}");
            assert_ne!(report.limit, Some(0));
            assert!(report.kv_cache_used.is_none_or(|used| (0.0..=1.0).contains(&used)), "{report:?}");
            let models = report.models.unwrap_or_default();
            assert!(models.len() <= 4_096);
            for model in models {
                assert!((1..=256).contains(&model.native.len()) && !model.native.chars().any(char::is_control));
                assert!(model.details.len() <= 8);
            }
        }
    }
}

#[test]
fn cut_answers_break_nothing() {
    for golden in GOLDEN {
        for cut in (0..golden.len()).step_by(golden.len() / 200 + 1) {
            check_all_readers(&golden[..cut]);
        }
    }
}

#[test]
fn garbled_answers_break_nothing() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap()
    };
    let mut spice = b"{}[]\"\\:,=#\n\r\t 0-9eE.NaN\0\x7f\x80\xff".to_vec();
    spice.extend(b"vllm:num_requests_running");
    for golden in GOLDEN {
        for _ in 0..200 {
            let mut body = golden[..golden.len().min(8_192)].to_vec();
            for _ in 0..=random() % 8 {
                let at = random() % body.len();
                body[at] = spice[random() % spice.len()];
            }
            check_all_readers(&body);
        }
    }
}

#[test]
fn hostile_answers_break_nothing() {
    let deep = "[".repeat(100_000);
    let nested = format!("{{\"data\":{}{}}}", "[".repeat(100), "]".repeat(100));
    let long = format!("{{\"data\":[{{\"id\":\"{}\"}}]}}", "m".repeat(1 << 20));
    let many = format!("{{\"data\":[{}]}}", vec![r#"{"id":"m","aliases":["a","b"]}"#; 20_000].join(","));
    for body in [deep.as_str(), &nested, &long, &many, "\u{feff}{}", "null", "true", "1e999", "\"\"", "\r\n\r\n"] {
        check_all_readers(body.as_bytes());
    }
    check_all_readers(&[0xff; 4_096]);
    check_all_readers(&[b'{'; 4_096]);
}

/// A report is cheap enough for a poll a second of a large fleet: the longest true answer many times over.
#[test]
fn a_large_exposition_is_read_whole() {
    let body: Vec<u8> = (0..64).flat_map(|_| VLLM_IDLE.iter().chain(VLLM_FULL)).copied().collect();
    assert!(body.len() < ANSWER_LIMIT_BYTES);
    let report = ask(Engine::Vllm, &[("/metrics", 200, &body)]);
    assert_eq!((report.running, report.waiting), (Some(256), Some(128)));
}
