//! Which numbers of which cell are shown, and what they are compared with.

/// How one cell is shown.
pub struct Cell {
    pub name: &'static str,
    pub title: &'static str,
    pub columns: &'static [Column],
    /// Subjects that the others are compared with, where they were measured.
    pub bases: &'static [&'static str],
}

/// One number of a measurement.
pub struct Column {
    pub key: &'static str,
    pub heading: &'static str,
    /// Whether it is worth a ratio.
    pub is_compared: bool,
}

const fn compared(key: &'static str, heading: &'static str) -> Column {
    Column { key, heading, is_compared: true }
}

const fn shown(key: &'static str, heading: &'static str) -> Column {
    Column { key, heading, is_compared: false }
}

const RATE: Column = compared("requests_per_s", "requests/s");
const CPU_PER_REQUEST: Column = compared("cpu_us_per_request", "CPU µs a request");
const CPU_PER_CHUNK: Column = compared("cpu_us_per_event", "CPU µs a chunk");
const CHUNKS: Column = compared("events_per_s", "chunks/s");
const P50: Column = shown("p50_us", "p50 µs");
const P99: Column = shown("p99_us", "p99 µs");
const TRANSIT_P50: Column = shown("transit_p50_us", "transit p50 µs");
const TRANSIT_P99: Column = shown("transit_p99_us", "transit p99 µs");
const FAILURES: Column = shown("failures", "failures");
/// Well below 1, the rate is not the proxy's limit.
const PROXY: Column = shown("proxy_cores_busy", "proxy cores busy");
/// Near 1, the rate says more about the load generator than about the proxy.
const LOAD: Column = shown("load_cores_busy", "load cores busy");
/// What others took of the machine meanwhile.
const FOREIGN: Column = shown("foreign_cores", "foreign cores");

const CHAT: &[Column] = &[RATE, CPU_PER_REQUEST, P50, P99, FAILURES, PROXY, LOAD, FOREIGN];
const VISION: &[Column] = &[compared("mb_per_s", "MB/s"), CPU_PER_REQUEST, P50, FAILURES, PROXY, LOAD, FOREIGN];
const PACED: &[Column] =
    &[CPU_PER_CHUNK, shown("events_per_s", "chunks/s"), TRANSIT_P50, TRANSIT_P99, FAILURES, PROXY, LOAD, FOREIGN];
const CHANGING: &[Column] = &[
    RATE,
    compared("p99_us", "p99 µs"),
    CPU_PER_REQUEST,
    shown("changes", "changes taken over"),
    FAILURES,
    PROXY,
    LOAD,
    FOREIGN,
];
const PROXIES: &[&str] = &["nginx", "haproxy", "hyper", "direct"];

/// In the order of a report.
pub const CELLS: &[Cell] = &[
    proxies("chat", "Small chats, 64 connections at full speed", CHAT),
    proxies(
        "latency",
        "Small chats at 200 a second: latency added to the backend's own",
        &[
            compared("added_p50_us", "added p50 µs"),
            compared("added_p99_us", "added p99 µs"),
            P50,
            P99,
            CPU_PER_REQUEST,
            FAILURES,
            FOREIGN,
        ],
    ),
    proxies("vision-4", "2 MB vision bodies, 4 connections", VISION),
    proxies("vision-1", "2 MB vision bodies, 1 connection", VISION),
    proxies(
        "sse",
        "Server-sent events, 100 streams as fast as they go",
        &[CHUNKS, CPU_PER_CHUNK, TRANSIT_P50, TRANSIT_P99, FAILURES, PROXY, LOAD, FOREIGN],
    ),
    proxies("streams-100", "Server-sent events, 100 streams of 50 chunks a second", PACED),
    proxies("streams-1000", "Server-sent events, 1,000 streams of 20 chunks a second", PACED),
    proxies("connections", "Small chats, each on a new connection", CHAT),
    proxies(
        "memory",
        "Resident memory",
        &[
            shown("idle_mb", "idle MB"),
            shown("few_mb", "MB, 1,000 streams"),
            shown("many_mb", "MB, 9,000 streams"),
            compared("kb_per_stream", "kB a stream between them"),
        ],
    ),
    own("backends", "Small chats, by the number of backends", CHAT, &["3 backends"]),
    own("swap", "Small chats while the policy is swapped every 200 ms", CHANGING, &["undisturbed"]),
    own("reload", "Small chats while the configuration changes every 200 ms", CHANGING, &["undisturbed"]),
    own("cores", "Small chats, one worker and two", CHAT, &["workers = 1"]),
    own("policy", "One call of the policy round-robin", &[shown("call_us", "µs a call")], &[]),
];

const fn proxies(name: &'static str, title: &'static str, columns: &'static [Column]) -> Cell {
    Cell { name, title, columns, bases: PROXIES }
}

const fn own(
    name: &'static str,
    title: &'static str,
    columns: &'static [Column],
    bases: &'static [&'static str],
) -> Cell {
    Cell { name, title, columns, bases }
}
