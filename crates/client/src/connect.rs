//! How to reach a server: address, identity, timeouts and limits of a connection.

use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::error::Error;

/// How to reach a server.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// `HOST:PORT` or `http://HOST:PORT`.
    pub server: String,
    /// Sent as `authorization: Bearer …` with every call.
    pub token: Option<String>,
    /// How long establishing a connection may take.
    pub connect_timeout: Duration,
    /// How often an HTTP/2 ping proves that the connection lives, also while nothing runs on it.
    pub keepalive_interval: Duration,
    /// How long a ping may go unanswered before the connection is given up.
    pub keepalive_timeout: Duration,
    /// Size of a message, either way. An F32 vector of 5120 dimensions is 20 KiB.
    pub max_message_bytes: usize,
}

impl ConnectOptions {
    /// Defaults for everything but the address: 5 s to connect, a ping each 30 s with 20 s to be answered,
    /// messages of up to 32 MiB.
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            token: None,
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            max_message_bytes: 32 << 20,
        }
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let invalid = |message: String| Error::Option {
            option: "server",
            message: format!("{message}: {:?}", self.server),
        };
        let address = if self.server.contains("://") {
            self.server.clone()
        } else {
            format!("http://{}", self.server)
        };
        let endpoint = Endpoint::from_shared(address).map_err(|e| invalid(innermost(&e)))?;
        let uri = endpoint.uri();
        if uri.scheme_str() != Some("http") {
            return Err(invalid("only http:// (h2c) is spoken".into()));
        }
        if uri.port().is_none() {
            return Err(invalid("the port is missing".into()));
        }
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(true))
    }

    /// Establishes the connection.
    pub(crate) async fn connect(&self) -> Result<Channel, Error> {
        self.endpoint()?.connect().await.map_err(|e| Error::Connect {
            server: self.server.clone(),
            reason: innermost(&e),
        })
    }

    /// A channel that connects at its first call.
    pub(crate) fn connect_lazy(&self) -> Result<Channel, Error> {
        Ok(self.endpoint()?.connect_lazy())
    }

    pub(crate) fn identity(&self) -> Result<Identity, Error> {
        let authorization = self.token.as_ref().map(bearer).transpose()?;
        Ok(Identity { authorization })
    }
}

fn bearer(token: &String) -> Result<MetadataValue<Ascii>, Error> {
    let header = MetadataValue::try_from(format!("Bearer {token}"));
    let mut header = header.map_err(|_| Error::Option {
        option: "token",
        message: "must be visible ASCII".into(),
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// Says with every call who is calling.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    authorization: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Identity {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(authorization) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

/// The last error of a chain: transport errors say what happened only there.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_no_scheme() {
        for server in [
            "127.0.0.1:50051",
            "http://127.0.0.1:50051",
            "[::1]:50051",
            "localhost:1",
        ] {
            assert!(ConnectOptions::new(server).endpoint().is_ok(), "{server}");
        }
    }

    #[test]
    fn an_address_that_cannot_work_is_named() {
        for server in [
            "",
            "localhost",
            "https://localhost:1",
            "http://a b:1",
            "unix:/tmp/socket",
        ] {
            let error = ConnectOptions::new(server).endpoint().unwrap_err();
            assert!(
                matches!(error, Error::Option { option: "server", .. }),
                "{server}: {error:?}"
            );
            assert!(error.to_string().contains(&format!("{server:?}")), "{error}");
        }
    }

    #[test]
    fn a_token_that_is_no_header_is_refused() {
        let mut options = ConnectOptions::new("localhost:1");
        options.token = Some("two\nlines".into());
        assert!(matches!(
            options.identity(),
            Err(Error::Option { option: "token", .. })
        ));
    }

    #[tokio::test]
    async fn nobody_listening_is_a_typed_error() {
        // Port 1 on loopback: reserved, and nobody's.
        let error = ConnectOptions::new("127.0.0.1:1").connect().await.unwrap_err();
        assert!(
            matches!(&error, Error::Connect { server, .. } if server == "127.0.0.1:1"),
            "{error:?}"
        );
    }
}
