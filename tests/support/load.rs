//! Clients that ask without a pause: what changes beside them must cost none of them anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use tokio::task::JoinSet;

use super::bodies::MODEL;
use super::{Client, Proxy, eventually};

pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: JoinSet<()>,
}

impl Load {
    /// So many clients, each sending a chat, then a stream.
    pub fn of(proxy: &Proxy, clients: usize) -> Self {
        Self::by(proxy, clients, |client| async move {
            assert_eq!(client.chat().await.ok().json()["model"], MODEL);
            assert!(client.stream().await.rest().await.ends_with("data: [DONE]\n\n"));
        })
    }

    /// So many clients that make this exchange, which panics where it fails.
    pub fn by<F>(proxy: &Proxy, clients: usize, exchange: impl Fn(Client) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut load = Self { stop, answered, clients: JoinSet::new() };
        for _ in 0..clients {
            let (client, exchange) = (proxy.another_client(), exchange.clone());
            let (stop, answered) = (Arc::clone(&load.stop), Arc::clone(&load.answered));
            load.clients.spawn(async move {
                while !stop.load(SeqCst) {
                    exchange(client.clone()).await;
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        load
    }

    /// Exchanges that ended well so far.
    pub fn answered(&self) -> usize {
        self.answered.load(SeqCst)
    }

    /// Returns when so many more ended well.
    pub async fn answers_more(&self, count: usize) {
        let enough = self.answered() + count;
        eventually("requests are answered under load", async || self.answered() >= enough).await;
    }

    /// Stops; an exchange that failed fails the test here.
    pub async fn ends_well(self) {
        self.stop.store(true, SeqCst);
        self.clients.join_all().await;
    }
}
