//! What engines answer when they are polled, as recorded from the real ones.

use super::super::Answer;

/// Whose wire format a backend speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    OpenAi,
    /// The same, and says that its model takes no images.
    TextOnly,
    Vllm,
}

/// What an engine says of its load.
#[derive(Clone, Copy, Default)]
pub struct Report {
    pub running: u32,
    /// Requests of others that run there: where there are any, `running` is those and ours, as a true engine counts.
    pub others: u32,
    pub waiting: u32,
    /// 0 to 1.
    pub kv_cache_used: f64,
    /// Its health page is red.
    pub unhealthy: bool,
    pub page: LoadPage,
}

/// How its page of metrics is.
#[derive(Debug, Clone, Copy, Default)]
pub enum LoadPage {
    #[default]
    Well,
    /// It answers 500.
    Dead,
    /// It answers, and never ends.
    Hangs,
    /// It sends whoever asks elsewhere.
    Redirects,
    /// It says this for every number.
    Says(&'static str),
}

impl Speaks {
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi | Self::TextOnly => "openai",
            Self::Vllm => "vllm",
        }
    }

    /// The answer to a GET of `target`, behind whatever base path.
    pub fn answer(self, target: &str, native: &str, report: Report) -> Answer {
        match (self, target) {
            (_, target) if target.ends_with("/v1/models") => Answer::json(200, self.models(native)),
            (Self::Vllm, "/health") => Answer::whole(if report.unhealthy { 503 } else { 200 }, &[], ""),
            (Self::Vllm, "/version") => Answer::json(200, r#"{"version":"0.32.0"}"#),
            (Self::Vllm, "/load") => Answer::json(200, r#"{"server_load":0}"#),
            (Self::Vllm, "/metrics") => {
                let plain_text = ("content-type", "text/plain; version=1.0.0; charset=utf-8");
                match report.page {
                    LoadPage::Well => Answer::whole(200, &[plain_text], vllm_metrics(native, report, None)),
                    LoadPage::Says(lie) => Answer::whole(200, &[plain_text], vllm_metrics(native, report, Some(lie))),
                    LoadPage::Redirects => Answer::whole(302, &[("location", "/elsewhere")], ""),
                    LoadPage::Dead => Answer::error(500),
                    LoadPage::Hangs => Answer::chunked(200, &[plain_text]).stall(),
                }
            }
            (Self::Vllm, _) => Answer::json(404, r#"{"detail":"Not Found"}"#),
            (Self::OpenAi | Self::TextOnly, _) => {
                Answer::whole(404, &[("content-type", "text/plain")], "404 page not found")
            }
        }
    }

    fn models(self, native: &str) -> String {
        let facts = match self {
            Self::OpenAi => r#""owned_by":"somebody""#,
            Self::TextOnly => r#""owned_by":"somebody","architecture":{"input_modalities":["text"]}"#,
            Self::Vllm => r#""owned_by":"vllm","root":"tiny","parent":null,"max_model_len":4096,"permission":[]"#,
        };
        format!(r#"{{"object":"list","data":[{{"id":"{native}","object":"model","created":1795345817,{facts}}}]}}"#)
    }
}

fn vllm_metrics(native: &str, report: Report, lie: Option<&str>) -> String {
    let gauge = |name: &str, more: &str, value: String| {
        let value = lie.unwrap_or(&value);
        format!(
            "# HELP {name} As vLLM tells it.\n# TYPE {name} gauge\n\
             {name}{{engine=\"0\",model_name=\"{native}\"{more}}} {value}\n"
        )
    };
    let Report { running, waiting, kv_cache_used, .. } = report;
    [
        "# HELP python_info Python platform information\n# TYPE python_info gauge\n".to_owned(),
        "python_info{version=\"3.11.2\"} 1.0\n".to_owned(),
        gauge("vllm:num_requests_running", "", format!("{running}.0")),
        gauge("vllm:num_requests_waiting", "", format!("{waiting}.0")),
        // The same requests again: whoever adds them up counts them twice.
        gauge("vllm:num_requests_waiting_by_reason", ",reason=\"capacity\"", format!("{waiting}.0")),
        gauge("vllm:kv_cache_usage_perc", "", format!("{kv_cache_used}")),
    ]
    .concat()
}
