//! Certificates made for one test, and TLS before a scripted backend.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncWriteExt, copy, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::{Backend, Folder};

/// Where both sides of every test are.
pub const LOOPBACK: &str = "127.0.0.1";

/// An authority of a test's own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn named(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::new(Vec::new()).expect("no names");
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Python is strict about what an authority says of itself.
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = parameters.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(parameters, key), pem }
    }

    /// A certificate for these names that is valid for long.
    pub fn certify(&self, names: &[&str]) -> Identity {
        self.certify_until(names, 4000)
    }

    /// The same, valid until the first day of this year.
    pub fn certify_until(&self, names: &[&str], year: i32) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).expect("names");
        parameters.not_after = date_time_ymd(year, 1, 1);
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        Identity { cert: certificate.pem(), key: key.serialize_pem() }
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM")).expect("an authority");
        Arc::new(roots)
    }

    /// How a client speaks TLS that trusts this authority, and shows who it is where it is somebody.
    pub fn client(&self, identity: Option<&Identity>) -> ClientConfig {
        let builder = ClientConfig::builder().with_root_certificates(self.roots());
        match identity {
            Some(identity) => builder.with_client_auth_cert(identity.chain(), identity.private()).expect("a pair"),
            None => builder.with_no_client_auth(),
        }
    }
}

/// A certificate with its key, in PEM.
pub struct Identity {
    pub cert: String,
    pub key: String,
}

impl Identity {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.cert.as_bytes()).collect::<Result<_, _>>().expect("PEM")
    }

    fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM")
    }

    /// How a server speaks TLS that shows this.
    pub fn server(&self) -> ServerConfig {
        let builder = ServerConfig::builder().with_no_client_auth();
        builder.with_single_cert(self.chain(), self.private()).expect("a pair")
    }

    /// The same for one that wants to see a certificate of this authority.
    pub fn server_for(&self, clients: &Authority) -> ServerConfig {
        let verifier = WebPkiClientVerifier::builder(clients.roots()).build().expect("a verifier");
        let builder = ServerConfig::builder().with_client_cert_verifier(verifier);
        builder.with_single_cert(self.chain(), self.private()).expect("a pair")
    }

    /// Puts both into files of a folder; the `[tls]` table that names them.
    pub fn table(&self, folder: &Folder) -> String {
        self.write(folder);
        let path = |name: &str| folder.path().join(name).display().to_string();
        format!("[tls]\ncert = \"{}\"\nkey = \"{}\"\n", path("tls.crt"), path("tls.key"))
    }

    /// Puts both into the files of that table.
    pub fn write(&self, folder: &Folder) -> [PathBuf; 2] {
        [folder.write("tls.crt", &self.cert), folder.write("tls.key", &self.key)]
    }
}

/// Speaks TLS before a backend. Where that ends a connection, it ends in order.
pub struct TlsFront {
    pub address: SocketAddr,
    seen: Arc<Seen>,
    accepting: JoinHandle<()>,
}

struct Seen {
    config: Mutex<Arc<ServerConfig>>,
    /// Connections end without the last word of TLS.
    cuts: AtomicBool,
    handshakes: AtomicUsize,
    /// The names asked for, in order.
    names: Mutex<Vec<Option<String>>>,
}

impl TlsFront {
    pub async fn before(backend: &Backend, config: ServerConfig) -> Self {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Seen {
            config: Mutex::new(Arc::new(config)),
            cuts: AtomicBool::new(false),
            handshakes: AtomicUsize::new(0),
            names: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, backend.address, Arc::clone(&seen)));
        Self { address, seen, accepting }
    }

    /// Those who connect from now on are met so.
    pub fn becomes(&self, config: ServerConfig) {
        *self.seen.config.lock().expect("no poison") = Arc::new(config);
    }

    /// Connections end without the last word of TLS from now on, as if somebody in between had cut them.
    pub fn cuts(&self) {
        self.seen.cuts.store(true, SeqCst);
    }

    /// The backend's table of the configuration, by this address and with these settings of TLS.
    pub fn entry(&self, backend: &Backend, settings: &str) -> String {
        let plain = format!("http://{}", backend.address);
        let entry = backend.entry().replace(&plain, &format!("https://{}", self.address));
        format!("{entry}tls = {{ {settings} }}\n")
    }

    /// Handshakes that ended well.
    pub fn handshakes(&self) -> usize {
        self.seen.handshakes.load(SeqCst)
    }

    /// The names it was asked for.
    pub fn names(&self) -> Vec<Option<String>> {
        self.seen.names.lock().expect("no poison").clone()
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("accept");
        connections.spawn(relay(stream, to, Arc::clone(&seen)));
        while connections.try_join_next().is_some() {}
    }
}

async fn relay(stream: TcpStream, to: SocketAddr, seen: Arc<Seen>) {
    stream.set_nodelay(true).expect("no delay");
    let config = Arc::clone(&seen.config.lock().expect("no poison"));
    let Ok(client) = TlsAcceptor::from(config).accept(stream).await else { return };
    seen.handshakes.fetch_add(1, SeqCst);
    seen.names.lock().expect("no poison").push(client.get_ref().1.server_name().map(str::to_owned));
    let Ok(backend) = TcpStream::connect(to).await else { return };
    backend.set_nodelay(true).expect("no delay");
    let ((mut read, mut write), (mut backend_read, mut backend_write)) = (split(client), backend.into_split());
    // Where one side ends, the other does.
    tokio::select! {
        _ = copy(&mut read, &mut backend_write) => {}
        _ = copy(&mut backend_read, &mut write) => {}
    }
    if !seen.cuts.load(SeqCst) {
        // Whoever left does not hear it.
        _ = write.shutdown().await;
    }
}
