//! Encryption of the gRPC listeners, and what a client's certificate says of it.
//!
//! The crypto provider is named here and nowhere else. A connection keeps the certificate it began with.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{ClientAuth, TlsConfig};
use crate::reload::Watched;

/// What HTTP/2 is called in a handshake.
const H2: &[u8] = b"h2";

/// What the files make.
pub(crate) struct Tls {
    pub(crate) config: Arc<ServerConfig>,
    /// When the server's certificate ends, in seconds since 1970.
    pub(crate) not_after: i64,
}

/// Who is at the other end of a connection, as far as the connection tells.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    /// Subject alternative names of its verified certificate: `dns:…`, `uri:…`, `email:…`.
    pub(crate) sans: Vec<String>,
}

/// The one cryptography of this process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads certificate, key and, where clients must show certificates, who signs theirs.
///
/// # Errors
/// Names the file and what is wrong with it.
pub(crate) fn open(config: &TlsConfig) -> Result<Watched<Tls>, String> {
    let mut paths = vec![config.cert.clone(), config.key.clone()];
    paths.extend(config.client_ca.clone());
    let client_auth = config.client_auth;
    Watched::open("tls", paths, move |contents| match contents {
        [cert, key] => tls(cert, key, None),
        [cert, key, client_ca] => tls(cert, key, Some((client_ca, client_auth))),
        _ => Err("needs a certificate and a key".into()),
    })
}

fn tls(cert: &[u8], key: &[u8], clients: Option<(&Vec<u8>, ClientAuth)>) -> Result<Tls, String> {
    let chain = certificates(cert).map_err(|e| format!("the certificate {e}"))?;
    let not_after = valid_until(&chain[0])?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("the key cannot be read: {e}"))?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some((ca, client_auth)) => {
            let mut roots = rustls::RootCertStore::empty();
            for root in certificates(ca).map_err(|e| format!("the clients' CA {e}"))? {
                roots
                    .add(root)
                    .map_err(|e| format!("the clients' CA cannot be used: {e}"))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            let verifier = match client_auth {
                ClientAuth::Required => verifier,
                ClientAuth::Optional => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(verifier.build().map_err(|e| e.to_string())?)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|e| format!("certificate and key cannot be used together: {e}"))?;
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(Tls {
        config: Arc::new(config),
        not_after,
    })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err("is not there: no PEM block says CERTIFICATE".into()),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// When a certificate ends; one that has ended already is no good.
fn valid_until(certificate: &CertificateDer<'_>) -> Result<i64, String> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| format!("the certificate cannot be read: {e}"))?;
    let validity = parsed.validity();
    if validity.time_to_expiration().is_none() && !before(validity) {
        return Err(format!("the certificate ended on {}", validity.not_after));
    }
    Ok(validity.not_after.timestamp())
}

/// Whether a certificate is not valid yet: clocks may differ, so that is no reason to refuse it.
fn before(validity: &x509_parser::certificate::Validity) -> bool {
    x509_parser::time::ASN1Time::now() < validity.not_before
}

impl Peer {
    /// What a verified certificate says of who has it.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return Self::default();
        };
        let names = match certificate.subject_alternative_name() {
            Ok(Some(names)) => &names.value.general_names[..],
            _ => &[],
        };
        let sans = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(format!("dns:{}", name.to_ascii_lowercase())),
            GeneralName::URI(uri) => Some(format!("uri:{uri}")),
            GeneralName::RFC822Name(address) => Some(format!("email:{address}")),
            _ => None,
        });
        Self { sans: sans.collect() }
    }
}
