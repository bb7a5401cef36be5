//! A way to a server that tests can cut, as a pulled cable or a proxy that dies does.

use std::net::SocketAddr;

use baichuan_client::{Client, ConnectOptions};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Carries connections to a server until it is cut.
pub struct Wire {
    /// Where clients connect.
    pub address: SocketAddr,
    cuts: watch::Sender<u64>,
    server: watch::Sender<SocketAddr>,
    carrying: JoinHandle<()>,
}

impl Wire {
    /// A wire to `server`.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = watch::Sender::new(0);
        let cut = cuts.subscribe();
        let to = watch::Sender::new(server);
        let server = to.subscribe();
        let carrying = tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut cut = cut.clone();
                cut.mark_unchanged();
                let server = *server.borrow();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(server).await else {
                        return;
                    };
                    // Each write is on its way at once, as without a wire between.
                    near.set_nodelay(true).unwrap();
                    far.set_nodelay(true).unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self {
            address,
            cuts,
            server: to,
            carrying,
        }
    }

    /// Breaks every connection there is; new ones are carried.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Has new connections lead to another server.
    pub fn lead_to(&self, server: SocketAddr) {
        self.server.send_replace(server);
    }

    /// A client over this wire.
    pub async fn connect(&self) -> Client {
        self.connect_as(None).await
    }

    /// A client over this wire, with this token.
    pub async fn connect_as(&self, token: Option<&str>) -> Client {
        let options = ConnectOptions {
            token: token.map(Into::into),
            ..ConnectOptions::new(self.address.to_string())
        };
        Client::connect(&options).await.unwrap()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.carrying.abort();
        self.cut();
    }
}
