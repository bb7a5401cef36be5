//! The whole server in this process, on a port of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use baichuan_client::{Client, ConnectOptions, TlsOptions};
use baichuan_engine::{ModelPlugin, Registry};
use baichuan_server::config::{self, Config, Flag, Inputs, Places};
use baichuan_server::{Listeners, ServeError, shutdown};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::checkpoint::repository;
use crate::fake::{Fake, FakePlugin, Gate, OpenAtEnd};
use crate::wait::{until_ready, within};

/// What to serve and how.
pub struct Setup {
    plugins: Vec<Box<dyn FnOnce(Registry) -> Registry>>,
    models: Vec<(String, Model)>,
    gates: Vec<(String, Gate)>,
    settings: BTreeMap<String, String>,
    caller: Caller,
}

/// How the test's own client connects.
#[derive(Clone, Default)]
struct Caller {
    tls: Option<TlsOptions>,
    token: Option<String>,
}

impl Caller {
    fn options(&self, address: SocketAddr) -> ConnectOptions {
        ConnectOptions {
            tls: self.tls.clone(),
            token: self.token.clone(),
            ..ConnectOptions::new(address.to_string())
        }
    }
}

enum Model {
    Fake(Fake),
    Checkpoint(PathBuf),
}

impl Setup {
    /// Nothing is named: the server serves its default model.
    pub fn default_model() -> Self {
        Self::new()
    }

    fn new() -> Self {
        let nothing = Self {
            plugins: Vec::new(),
            models: Vec::new(),
            gates: Vec::new(),
            settings: BTreeMap::new(),
            caller: Caller::default(),
        };
        nothing
            .with("listen.grpc", "127.0.0.1:0")
            .with("listen.admin", "off")
            .with("engine.scrub_freed", true)
            .with("engine.cache.context_tokens", 16384)
            .with("shutdown.drain_timeout", "20s")
    }

    /// One fake model, called `fake`.
    pub fn fake(fake: Fake) -> Self {
        Self::new().and_fake("fake", fake)
    }

    /// One checkpoint of the real model, called `m1`.
    pub fn m1(dir: impl Into<PathBuf>) -> Self {
        Self::new().and_m1("m1", dir)
    }

    /// A fake model too.
    pub fn and_fake(mut self, name: &str, fake: Fake) -> Self {
        self.models.push((name.into(), Model::Fake(fake)));
        self
    }

    /// A checkpoint of the real model too.
    pub fn and_m1(mut self, name: &str, dir: impl Into<PathBuf>) -> Self {
        self.models.push((name.into(), Model::Checkpoint(dir.into())));
        self
    }

    /// A gate for a fake model that is loaded later.
    pub fn with_gate(mut self, name: &str, gate: &Gate) -> Self {
        self.gates.push((name.into(), gate.clone()));
        self
    }

    /// A plugin besides the tests' own and Baichuan-M1's.
    pub fn with_plugin(mut self, plugin: impl ModelPlugin + 'static) -> Self {
        self.plugins.push(Box::new(|registry| registry.with(plugin)));
        self
    }

    /// A configuration key, as `--set` takes it.
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.insert(key.into(), value.to_string());
        self
    }

    /// How the test's client encrypts.
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.caller.tls = Some(tls);
        self
    }

    /// What the test's client proves itself with.
    pub fn token(mut self, token: &str) -> Self {
        self.caller.token = Some(token.into());
        self
    }

    /// Room for exactly so many blocks, instead of for 16384 tokens.
    pub fn with_blocks(mut self, global: usize, window: usize) -> Self {
        self.settings.remove("engine.cache.context_tokens");
        self.with("engine.cache.global_blocks", global)
            .with("engine.cache.window_blocks", window)
    }

    /// Writes fake checkpoints and a configuration file, and reads it as the program does.
    fn prepare(self, dir: &TempDir) -> (Config, Registry, OpenAtEnd) {
        let mut plugin = FakePlugin::default();
        plugin.gates.extend(self.gates);
        let mut file = String::new();
        for (name, model) in self.models {
            let path = match model {
                Model::Checkpoint(path) => path,
                Model::Fake(fake) => {
                    let path = dir.path().join(&name);
                    std::fs::create_dir(&path).unwrap();
                    fake.write(&path).unwrap();
                    plugin.gates.extend(fake.gate.map(|gate| (name.clone(), gate)));
                    path
                }
            };
            file += &format!("[[models]]\nname = {name:?}\npath = {path:?}\n");
        }
        let path = dir.path().join("server.toml");
        std::fs::write(&path, file).unwrap();
        let flags = self.settings.into_iter().map(|(key, value)| Flag {
            name: "--set".into(),
            key,
            value,
        });
        let inputs = Inputs {
            file: Some(path),
            env: Vec::new(),
            flags: flags.collect(),
            places: Places {
                cwd: Some(repository()),
                exe: None,
            },
            models_must_exist: true,
        };
        let config = config::load(&inputs).unwrap_or_else(|e| panic!("{e}"));
        let gates = OpenAtEnd(plugin.gates.values().cloned().collect());
        let registry = Registry::new().with(baichuan_m1::plugin()).with(plugin);
        let registry = self
            .plugins
            .into_iter()
            .fold(registry, |registry, add| add(registry));
        (config, registry, gates)
    }
}

/// A running server and a client of it.
pub struct TestServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where `/metrics` is, when enabled.
    pub admin: Option<SocketAddr>,
    /// Where AdminService is, when enabled.
    pub admin_grpc: Option<SocketAddr>,
    /// Connected.
    pub client: Client,
    trigger: shutdown::Trigger,
    serving: JoinHandle<Result<(), ServeError>>,
    gates: OpenAtEnd,
    caller: Caller,
    _dir: TempDir,
}

impl TestServer {
    /// Starts a server and waits until it is ready.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let caller = setup.caller.clone();
        let (config, registry, gates) = setup.prepare(&dir);
        let listeners = Listeners::bind(&config.listen).await.unwrap();
        let address = listeners.grpc.local_addr().unwrap();
        let local = |listener: &Option<TcpListener>| listener.as_ref().map(|l| l.local_addr().unwrap());
        let (admin, admin_grpc) = (local(&listeners.admin), local(&listeners.admin_grpc));
        let (trigger, shutdown) = shutdown::channel();
        let serving = tokio::spawn(baichuan_server::run(config, registry, listeners, shutdown));
        let client = within("a connection", Client::connect(&caller.options(address)))
            .await
            .unwrap();
        let server = Self {
            address,
            admin,
            admin_grpc,
            client,
            trigger,
            serving,
            gates,
            caller,
            _dir: dir,
        };
        until_ready(&server.client).await;
        server
    }

    /// One fake model with nothing special about it.
    pub async fn fake() -> Self {
        Self::start(Setup::fake(Fake::default())).await
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Client {
        Client::connect(&self.caller.options(self.address)).await.unwrap()
    }

    /// A connection with another proof, or none.
    pub async fn connect_as(&self, token: Option<&str>) -> Client {
        let mut options = self.caller.options(self.address);
        options.token = token.map(Into::into);
        Client::connect(&options).await.unwrap()
    }

    /// A connection encrypted in another way.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_by(&self, tls: TlsOptions) -> Result<Client, baichuan_client::Error> {
        let mut options = self.caller.options(self.address);
        options.tls = Some(tls);
        Client::connect(&options).await
    }

    /// A connection to AdminService.
    pub async fn operator(&self) -> Client {
        let address = self.admin_grpc.expect("listen.admin_grpc is set");
        Client::connect(&self.caller.options(address)).await.unwrap()
    }

    /// Has it look at certificates, tokens and keys again, as SIGHUP does.
    pub fn reload(&self) {
        self.trigger.reload();
    }

    /// The value of a sample of `/metrics`, by its name and labels; 0 while there is none.
    pub async fn metric(&self, series: &str) -> f64 {
        let mut socket = TcpStream::connect(self.admin.expect("listen.admin is set"))
            .await
            .unwrap();
        let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut page = String::new();
        socket.read_to_string(&mut page).await.unwrap();
        let sample = page
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        sample.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Returns when a sample of `/metrics` is at least this.
    pub async fn until_metric(&self, series: &str, least: f64) {
        let reached = async {
            while self.metric(series).await < least {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        within(series, reached).await;
    }

    /// `HOST:PORT`, as the programs take it.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Asks it to end, as SIGTERM does; the second time it ends at once.
    pub fn ask_to_end(&self) {
        self.trigger.ask();
    }

    /// Ends it and waits until it has ended.
    ///
    /// # Panics
    /// When it ended by itself before, or with an error.
    pub async fn stop(self) {
        assert!(!self.serving.is_finished(), "the server must still run");
        self.ask_to_end();
        self.ended().await;
    }

    /// Waits until it has ended by itself, with an error.
    ///
    /// # Panics
    /// When it ends well, or with a panic.
    pub async fn failed(self) -> ServeError {
        drop(self.client);
        let outcome = within("the server's end", self.serving).await;
        outcome.expect("no panic").expect_err("an error")
    }

    /// Waits until it has ended after [`Self::ask_to_end`].
    ///
    /// # Panics
    /// When it ends with an error or a panic.
    pub async fn ended(self) {
        drop(self.gates);
        drop(self.client);
        let outcome = within("the server's end", self.serving).await;
        outcome.expect("no panic").expect("no error");
    }
}
