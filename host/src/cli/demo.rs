//! `vision-proxy demo`

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::config::{self, Overrides};
use crate::control::{self, ConfigSource, Handed, Listening};

/// Try it: three simulated GPU servers, the proxy before them, and the dashboard, all on this machine.
///
/// No configuration, no GPU. The three servers run different engines and call the same model by different names;
/// a first chat and a first vision request are sent through the proxy, and what to type next is printed.
/// Runs until Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Address for applications; another free port is taken where this one is in use
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Address of the dashboard; another free port is taken where this one is in use
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901")]
    admin: SocketAddr,
}

/// The public name of the demo's model.
const MODEL: &str = "qwen-vl";
/// Name, engine, and what that engine calls the model.
const SERVERS: [(&str, &str, &str); 3] = [
    ("gpu-a", "vllm", "Qwen/Qwen2.5-VL-7B-Instruct"),
    ("gpu-b", "llama-cpp", "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf"),
    ("gpu-c", "ollama", "qwen2.5vl:7b"),
];
/// A picture of one pixel, to be looked at.
const PICTURE: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";

pub fn run(args: &Args) -> anyhow::Result<()> {
    let servers = SERVERS.iter().map(Simulated::start).collect::<anyhow::Result<Vec<_>>>()?;
    let overrides =
        Overrides { listen: Some(free(args.listen)?), admin: Some(free(args.admin)?), ..Overrides::default() };
    let config = config::parse(&configuration(&servers), None, &overrides)?;
    control::run(config, ConfigSource { path: None, overrides }, Handed::default(), |listening| {
        super::run::announce(listening);
        // The proxy needs this thread.
        std::thread::spawn(move || {
            if let Err(error) = introduce(listening) {
                eprintln!("the first requests failed: {error:#}");
            }
        });
    })
}

/// A simulated server in a process of its own, ended with this one.
struct Simulated {
    process: Child,
    name: &'static str,
    engine: &'static str,
    url: String,
}

impl Simulated {
    fn start((name, engine, model): &(&'static str, &'static str, &'static str)) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let arguments = [
            "simulate-backend",
            "--listen",
            "127.0.0.1:0",
            "--engine",
            engine,
            "--model",
            model,
            "--name",
            name,
            "--vision",
            "--slots",
            "4",
        ];
        let mut process = Command::new(program).args(arguments).stdout(Stdio::piped()).stdin(Stdio::null()).spawn()?;
        let mut first_line = String::new();
        let out = process.stdout.take().context("a process without standard output")?;
        let mut started = Self { process, name, engine, url: String::new() };
        BufReader::new(out).read_line(&mut first_line)?;
        started.url =
            first_line.trim().strip_prefix("listening on ").context("a simulated server did not start")?.to_owned();
        Ok(started)
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the demo would look like as a file.
fn configuration(servers: &[Simulated]) -> String {
    let names: Vec<&str> = SERVERS.iter().map(|(_, _, native)| *native).collect();
    let mut text = format!("[timeouts]\ndrain_delay = \"0s\"\n\n[models]\n{} = {}\n", json!(MODEL), json!(names));
    for server in servers {
        text += &format!(
            "\n[[backends]]\nname = {}\nurl = {}\nengine = {}\n",
            json!(server.name),
            json!(server.url),
            json!(server.engine)
        );
    }
    text
}

/// The address wanted, or another port of it where that one is in use.
fn free(wanted: SocketAddr) -> anyhow::Result<SocketAddr> {
    match TcpListener::bind(wanted) {
        Ok(_) => Ok(wanted),
        Err(_) => Ok(TcpListener::bind(SocketAddr::new(wanted.ip(), 0))?.local_addr()?),
    }
}

/// Sends the first requests and says what to do next.
fn introduce(listening: Listening) -> anyhow::Result<()> {
    let traffic = listening.traffic;
    let chat = json!([{"role": "user", "content": "Hello, who answers?"}]);
    let picture = format!("data:image/png;base64,{PICTURE}");
    let vision = json!([{"role": "user", "content": [{"type": "text", "text": "What is in this picture?"}, {"type": "image_url", "image_url": {"url": picture}}]}]);
    let mut out = format!("\n  Three simulated GPU servers are up: one model, `{MODEL}`, by three names.\n\n");
    for (what, messages) in [("a chat", chat), ("a picture", vision)] {
        let (backend, native, text) = ask(traffic, &messages)?;
        out += &format!("  {what:<10} → {backend} as {native}\n               \"{text}\"\n");
    }
    out += &format!(
        "\n  Dashboard:   http://{}/\n\n  With curl:\n\n{}\n  With the OpenAI SDK for Python:\n\n{}",
        listening.admin,
        curl(traffic),
        sdk(traffic)
    );
    out += "\n  Ctrl-C ends the demo.\n";
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(out.as_bytes())?;
    Ok(stdout.flush()?)
}

fn curl(traffic: SocketAddr) -> String {
    let body = json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "Tell me a story"}]});
    format!("curl -N http://{traffic}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n")
}

fn sdk(traffic: SocketAddr) -> String {
    format!(
        "from openai import OpenAI\nclient = OpenAI(base_url=\"http://{traffic}/v1\", api_key=\"none\")\nanswer = client.chat.completions.create(model=\"{MODEL}\", messages=[{{\"role\": \"user\", \"content\": \"Hello\"}}])\nprint(answer.model, answer.choices[0].message.content)\n"
    )
}

/// One chat request over a plain connection. Answers the backend, its name for the model, and the text.
fn ask(traffic: SocketAddr, messages: &Value) -> anyhow::Result<(String, String, String)> {
    let body = json!({"model": MODEL, "messages": messages}).to_string();
    let mut stream = TcpStream::connect(traffic)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {traffic}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let field = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned()).unwrap_or_default()
    };
    let body: Value = serde_json::from_str(body).with_context(|| format!("the answer was: {answer}"))?;
    let text = body
        .pointer("/choices/0/message/content")
        .and_then(Value::as_str)
        .with_context(|| format!("the answer was: {body}"))?;
    Ok((field("x-vision-proxy-backend:"), field("x-vision-proxy-model:"), text.to_owned()))
}
