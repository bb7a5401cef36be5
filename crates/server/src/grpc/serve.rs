//! Takes connections and carries their calls, within the transport's limits, until told to stop.
//!
//! Own code instead of tonic's server, for what that does not do: a bound on connections, a deadline for TLS handshake and
//! HTTP/2 preface, certificates that change while it runs, connection ages that differ, an end that does not wait for
//! ever, and no second timer on `grpc-timeout`, which would cut calls with another code than this server's own.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::Rng;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::pipeline::Pipeline;
use super::sending::Carrier;
use crate::config::GrpcConfig;
use crate::reload::Watched;
use crate::tls::{Peer, Tls};

/// The client's preface (RFC 9113, 3.4) and the header of the SETTINGS frame that must follow it.
const PREFACE_BYTES: usize = 24 + 9;
/// Wait after a failure to accept, such as having run out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How to stop: first ask connections to go, then close those that did not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    /// Take no more connections, tell those there are to make no more calls.
    pub(crate) gently: CancellationToken,
    /// Close all.
    pub(crate) now: CancellationToken,
}

/// Serves connections until stopped and all of them are closed.
pub(crate) async fn serve(
    listener: TcpListener,
    config: GrpcConfig,
    tls: Option<Arc<Watched<Tls>>>,
    pipeline: Pipeline,
    stop: Stop,
) {
    let builder = http2_builder(&config);
    let room = Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS)));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.gently.cancelled() => break,
            () = stop.now.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let (socket, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(ACCEPT_RETRY).await;
                        continue;
                    }
                };
                let Ok(place) = room.clone().try_acquire_owned() else {
                    tracing::warn!(%peer, limit = config.max_connections, "too many connections: closed");
                    continue;
                };
                let connection = Connection {
                    born: Instant::now(),
                    builder: builder.clone(),
                    config: config.clone(),
                    pipeline: pipeline.clone(),
                    stop: stop.clone(),
                };
                let tls = tls.clone();
                connections.spawn(async move {
                    connection.open(socket, tls).await;
                    drop(place);
                });
            }
        }
    }
    drop(listener);
    tokio::select! {
        () = async { while connections.join_next().await.is_some() {} } => {}
        () = stop.now.cancelled() => connections.shutdown().await,
    }
}

fn http2_builder(config: &GrpcConfig) -> http2::Builder<Carrier> {
    let mut builder = http2::Builder::new(Carrier::new(config.send_timeout));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_concurrent_streams)
        .initial_stream_window_size(config.initial_stream_window_bytes)
        .initial_connection_window_size(config.initial_connection_window_bytes)
        .adaptive_window(false)
        .max_frame_size(config.max_frame_bytes)
        .max_header_list_size(config.max_header_list_bytes)
        .max_send_buf_size(config.max_send_buffer_bytes)
        .max_pending_accept_reset_streams(config.max_pending_accept_reset_streams)
        .max_local_error_reset_streams(config.max_local_error_reset_streams)
        .keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout);
    builder
}

/// One connection.
struct Connection {
    born: Instant,
    builder: http2::Builder<Carrier>,
    config: GrpcConfig,
    pipeline: Pipeline,
    stop: Stop,
}

impl Connection {
    /// Carries it to its end, behind a TLS handshake where there is to be one.
    async fn open(self, socket: TcpStream, tls: Option<Arc<Watched<Tls>>>) {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "cannot turn Nagle's algorithm off");
        }
        let Some(tls) = tls else {
            return self.carry(socket, Peer::default()).await;
        };
        let acceptor = TlsAcceptor::from(tls.current().config.clone());
        let handshake = timeout_at(self.born + self.config.handshake_timeout, acceptor.accept(socket));
        let outcome = tokio::select! {
            outcome = handshake => outcome,
            () = self.stop.gently.cancelled() => return,
            () = self.stop.now.cancelled() => return,
        };
        let reason = match outcome {
            Ok(Ok(stream)) => {
                let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let peer = certificate.map(Peer::of).unwrap_or_default();
                return Box::pin(self.carry(stream, peer)).await;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took longer than grpc.handshake_timeout".to_owned(),
        };
        tracing::debug!(reason, "TLS handshake failed");
        self.pipeline.metrics().handshake_failures.inc();
    }

    async fn carry<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, socket: S, peer: Peer) {
        let Self {
            born,
            builder,
            config,
            pipeline,
            stop,
        } = self;
        let read = Arc::new(AtomicUsize::new(0));
        let io = TokioIo::new(Counted {
            socket,
            read: read.clone(),
        });
        let peer = Arc::new(peer);
        let service = service_fn(move |request| pipeline.clone().call(request, peer.clone()));
        let mut connection = pin!(builder.serve_connection(io, service));

        let mut handshake = pin!(sleep_until(born + config.handshake_timeout));
        let mut age = pin!(sleep_until(born + spread(config.max_connection_age)));
        let mut grace = pin!(sleep_until(far_from(born)));
        let (mut greeted, mut leaving) = (false, false);
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended");
                    }
                    return;
                }
                () = &mut handshake, if !greeted => {
                    greeted = true;
                    if read.load(Ordering::Relaxed) < PREFACE_BYTES {
                        tracing::debug!("connection without HTTP/2 preface closed");
                        return;
                    }
                }
                () = stop.gently.cancelled(), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut age, if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                    grace.as_mut().reset(Instant::now() + config.max_connection_age_grace);
                }
                () = &mut grace => {
                    tracing::debug!("aged connection closed with calls on it");
                    return;
                }
            }
        }
    }
}

/// An age within 10 % of the configured one, so that connections made together do not go together.
fn spread(age: Option<Duration>) -> Duration {
    match age {
        Some(age) => age.mul_f64(rand::rng().random_range(0.9..=1.1)),
        None => NEVER,
    }
}

/// As long as makes no difference.
const NEVER: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);

fn far_from(now: Instant) -> Instant {
    now + NEVER
}

/// A socket that counts the bytes read from it.
struct Counted<S> {
    socket: S,
    read: Arc<AtomicUsize>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buf);
        self.read
            .fetch_add(buf.filled().len() - before, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}
