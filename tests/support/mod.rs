//! What the suite is made of: the proxy under test, scripted backends before it, clients behind it.
//!
//! Read `proxy` and `backend` first. Everything here that waits is bounded, and says what it waited for.

mod answer;
mod asked;
mod backend;
mod bodies;
mod client;
pub mod frames;
mod gate;
mod load;
mod metrics;
mod name_server;
pub mod program;
mod proxy;
mod raw;
mod recorder;
mod reply;
mod shell;
mod simulated;
mod tls;
pub mod wait;
mod wall_clock;

pub use answer::Answer;
pub use asked::Asked;
pub use backend::{Backend, LoadPage, Report, Request, Setup, once_among, once_then};
pub use bodies::*;
pub use client::{Client, Events, Pending, in_parallel, try_whole, whole};
pub use gate::Gate;
pub use load::Load;
pub use metrics::{Metrics, Sample};
pub use name_server::{NameServer, Says};
pub use program::{Program, installed};
pub use proxy::{Proxy, RARE_POLLS, config, proxied};
pub use raw::{Raw, chunked_head, in_chunks, request_head, sized_request};
pub use recorder::{Recorder, problem};
pub use reply::Reply;
pub use shell::{Folder, vision_proxy};
pub use simulated::Simulated;
pub use tls::{Authority, Identity, LOOPBACK, TlsFront};
pub use wait::{eventually, soon};
pub use wall_clock::WallClock;
