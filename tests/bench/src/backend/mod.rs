//! `backend`: a mock of vLLM, cheap enough to stay out of the way. One thread, and as many listeners as asked for, each
//! a backend of its own to the proxy.
//!
//! It knows its model by one name and answers 404 for another, so that a proxy which translates names is caught when
//! it does not. What it needs to know stands in the first bytes of a request's body: `model`, `stream`, `max_tokens`
//! (how many chunks) and `pace_us` (the time between two, ours alone).

mod answer;
mod request;

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::wire::{self, Inbox};
use answer::Answers;
use request::{Path, Wish};

/// Large bodies are read in pieces of this size and thrown away.
const SCRATCH_BYTES: usize = 256 * 1024;

/// Be backends.
#[derive(clap::Args)]
pub struct Args {
    /// The one model they serve
    #[arg(long)]
    model: String,
    /// How many, each on a port of its own
    #[arg(long, default_value_t = 1)]
    listeners: usize,
}

/// What all connections of one listener share.
struct Backend {
    answers: Rc<Answers>,
    scratch: Rc<RefCell<Box<[u8]>>>,
    running: Cell<u32>,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let answers = Rc::new(Answers::new(&args.model));
    let scratch = Rc::new(RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice()));
    let listeners = (0..args.listeners).map(|_| wire::listen()).collect::<io::Result<Vec<_>>>()?;
    let addresses = listeners.iter().map(|listener| Ok(listener.local_addr()?.to_string()));
    println!("ready {}", addresses.collect::<io::Result<Vec<_>>>()?.join(" "));
    for listener in listeners {
        let backend = Backend { answers: answers.clone(), scratch: scratch.clone(), running: Cell::new(0) };
        tokio::task::spawn_local(accept(listener, Rc::new(backend)));
    }
    std::future::pending().await
}

async fn accept(listener: TcpListener, backend: Rc<Backend>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let backend = backend.clone();
                // How a connection ends is its client's affair.
                tokio::task::spawn_local(async move { backend.serve(stream).await.ok() });
            }
            // Out of files: some will be closed.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    }
}

impl Backend {
    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut inbox = Inbox::default();
        loop {
            let head = request::head(&mut stream, &mut inbox).await?;
            let wish = self.body(&mut stream, &mut inbox, head.length).await?;
            match head.path {
                Path::Chat => self.chat(&mut stream, &wish).await?,
                path => stream.write_all(&self.answers.of(path, self.running.get())).await?,
            }
            if head.is_last {
                return Ok(());
            }
        }
    }

    async fn chat(&self, stream: &mut TcpStream, wish: &Wish) -> io::Result<()> {
        if !wish.is_for(&self.answers) {
            return stream.write_all(&self.answers.of(Path::Unknown, 0)).await;
        }
        self.running.set(self.running.get() + 1);
        let answered = match wish.stream {
            Some(events) => self.answers.stream(stream, events).await,
            None => stream.write_all(self.answers.chat()).await,
        };
        self.running.set(self.running.get() - 1);
        answered
    }

    /// Reads a body to its end, and what is wished from its beginning.
    async fn body(&self, stream: &mut TcpStream, inbox: &mut Inbox, length: usize) -> io::Result<Wish> {
        while inbox.unused().len() < length.min(request::OPENING_BYTES) {
            inbox.receive(stream).await?;
        }
        let here = inbox.unused().len().min(length);
        let wish = Wish::read(&inbox.unused()[..here.min(request::OPENING_BYTES)]);
        inbox.used(here);
        let mut left = length - here;
        while left > 0 {
            stream.readable().await?;
            let mut scratch = self.scratch.borrow_mut();
            let most = left.min(scratch.len());
            match stream.try_read(&mut scratch[..most]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => left -= count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(wish)
    }
}
