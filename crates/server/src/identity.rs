//! Who calls, and what they may use.
//!
//! A bearer token (`authorization: Bearer …`), opaque or a JSON Web Token, goes before a client certificate, and that
//! before anonymity. A token that is given and not accepted ends the call, whatever else would have been. Each file of
//! this module checks one kind of proof; [`tenant`] is what a tenant may use and how much it has used.

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::config::{ANONYMOUS, Config};
use crate::error::{ApiError, Denied, Unproven};
use crate::grpc::Face;
use crate::reload::{Reload, Watched};
use crate::tls::Peer;

mod bucket;
mod jwt;
pub(crate) mod tenant;
mod tokens;

use jwt::Jwt;
use tenant::{Group, Tenant, Tenants};
use tokens::Tokens;
pub use tokens::{fresh_token, token_entry};

/// A caller who proved who they are, or need not.
#[derive(Clone)]
pub(crate) struct Identity {
    /// On whose account it is.
    pub(crate) tenant: Arc<Tenant>,
    /// Whose requests they are: the tenant's own name, also where its account is the one of all others.
    pub(crate) owner: Arc<str>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} of {})", self.owner, self.tenant.name())
    }
}

/// Says who calls.
#[derive(Debug)]
pub(crate) struct Authenticator {
    tenants: Arc<Tenants>,
    tokens: Option<Arc<Watched<Tokens>>>,
    jwt: Option<Jwt>,
    anonymous: Option<Identity>,
    open_health: bool,
}

impl Authenticator {
    /// Reads the files that proofs are checked with.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub(crate) fn open(config: &Config) -> Result<Self, String> {
        let tenants = Arc::new(Tenants::new(&config.tenants));
        let auth = &config.auth;
        let tokens = auth
            .tokens
            .as_ref()
            .map(|path| tokens::open(path.clone(), tenants.clone()).map(Arc::new))
            .transpose()?;
        let jwt = auth.jwt.as_ref().map(Jwt::open).transpose()?;
        // Configured only where there may be one, or by the operator's own hand.
        let proves = tokens.is_some() || jwt.is_some() || config.tenants.iter().any(|t| !t.sans.is_empty());
        let anonymous = (auth.allow_anonymous || !proves)
            .then(|| tenants.account(ANONYMOUS).cloned())
            .flatten()
            .map(|tenant| Identity {
                owner: ANONYMOUS.into(),
                tenant,
            });
        Ok(Self {
            tenants,
            tokens,
            jwt,
            anonymous,
            open_health: auth.open_health,
        })
    }

    /// All tenants there are.
    pub(crate) fn tenants(&self) -> &Arc<Tenants> {
        &self.tenants
    }

    /// The files that may change.
    pub(crate) fn files(&self) -> Vec<Arc<dyn Reload>> {
        let tokens = self.tokens.iter().map(|t| t.clone() as Arc<dyn Reload>);
        let keys = self.jwt.iter().map(|jwt| jwt.keys() as Arc<dyn Reload>);
        tokens.chain(keys).collect()
    }

    /// Lets a call to `path` on `face` pass, or says why not. `None` passes without being anybody's.
    pub(crate) fn admit(
        &self,
        face: Face,
        path: &str,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<Option<Identity>, ApiError> {
        let group = Group::of(path);
        if group == Group::Health && self.open_health {
            return Ok(None);
        }
        let identity = self.identify(headers, peer)?;
        // What is not served here is nobody's to be denied: the services say that it is not there.
        if face.serves(group) {
            identity.tenant.may_call(group)?;
        }
        Ok(Some(identity))
    }

    fn identify(&self, headers: &HeaderMap, peer: &Peer) -> Result<Identity, ApiError> {
        if let Some(given) = headers.get(AUTHORIZATION) {
            let token = given.to_str().ok().and_then(bearer);
            return match token {
                Some(token) => self.by_token(token),
                None => Err(not_accepted("not a bearer token")),
            };
        }
        if let Some(tenant) = self.tenants.of_sans(&peer.sans) {
            return Ok(Identity {
                owner: tenant.name().into(),
                tenant: tenant.clone(),
            });
        }
        self.anonymous
            .clone()
            .ok_or(ApiError::Unauthenticated(Unproven::Missing))
    }

    fn by_token(&self, token: &str) -> Result<Identity, ApiError> {
        let name = match &self.jwt {
            Some(jwt) if jwt::looks_like_one(token) => jwt.tenant_of(token).map_err(|e| not_accepted(&e))?,
            _ => {
                let tokens = self.tokens.as_ref().map(|t| t.current());
                let tokens = tokens.ok_or_else(|| not_accepted("no tokens are configured"))?;
                tokens
                    .tenant_of(token)
                    .ok_or_else(|| not_accepted("unknown or ended"))?
                    .to_owned()
            }
        };
        let tenant = self.tenants.account(&name).cloned();
        let tenant = tenant.ok_or(ApiError::Denied(Denied::Tenant))?;
        Ok(Identity {
            owner: name.into(),
            tenant,
        })
    }
}

/// The token of an `authorization` header; the scheme's case does not matter (RFC 9110, 11.1).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The caller learns no more than that; the operator finds the reason in the log.
fn not_accepted(reason: &str) -> ApiError {
    tracing::debug!(reason, "a credential was not accepted");
    ApiError::Unauthenticated(Unproven::NotAccepted)
}
