//! What each tenant may use.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::config::{OTHER, Service, TenantConfig};
use crate::error::{ApiError, Denied};

/// Models' name in an allow-list that means every model.
const ALL: &str = "*";

/// What a method belongs to, as far as permission goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// A service that tenants are allowed or not.
    Service(Service),
    /// `grpc.health.v1.Health`, and its like for routers.
    Health,
    /// Reflection: whoever is somebody may ask what there is.
    Reflection,
}

impl Group {
    /// Of a call's path. What is none of the known services is an application's.
    pub(crate) fn of(path: &str) -> Self {
        if path == "/vllm.grpc.engine.VllmEngine/HealthCheck" {
            return Self::Health;
        }
        let service = path
            .strip_prefix('/')
            .and_then(|p| p.split_once('/'))
            .map_or("", |(s, _)| s);
        match service {
            "baichuan.v1.ModelService" => Self::Service(Service::ModelService),
            "baichuan.v1.ControlService" => Self::Service(Service::ControlService),
            "baichuan.v1.AdminService" => Self::Service(Service::AdminService),
            "grpc.health.v1.Health" => Self::Health,
            "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection" => {
                Self::Reflection
            }
            _ => Self::Service(Service::InferenceService),
        }
    }
}

/// A tenant.
pub(crate) struct Tenant {
    config: TenantConfig,
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tenant({})", self.config.name)
    }
}

impl Tenant {
    fn new(config: TenantConfig) -> Self {
        Self { config }
    }

    /// Its configured name.
    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// Whether it may call a service.
    pub(crate) fn may_call(&self, group: Group) -> Result<(), ApiError> {
        match group {
            Group::Service(service) if !self.config.services.contains(&service) => {
                Err(ApiError::Denied(Denied::Service(service)))
            }
            _ => Ok(()),
        }
    }

    /// Whether it is the operator's: it may see and end what others run.
    pub(crate) fn is_operator(&self) -> bool {
        self.config.services.contains(&Service::AdminService)
    }

    /// Whether it may use a model, by its served name.
    pub(crate) fn may_use(&self, model: &str) -> bool {
        self.config.models.iter().any(|m| m == ALL || m == model)
    }

    /// As [`Self::may_use`], as a call's end.
    pub(crate) fn must_be_allowed(&self, model: &str) -> Result<(), ApiError> {
        match self.may_use(model) {
            true => Ok(()),
            false => Err(ApiError::Denied(Denied::Model(model.to_owned()))),
        }
    }
}

/// All tenants.
#[derive(Debug)]
pub(crate) struct Tenants {
    by_name: BTreeMap<String, Arc<Tenant>>,
    by_san: HashMap<String, Arc<Tenant>>,
}

impl Tenants {
    pub(crate) fn new(configs: &[TenantConfig]) -> Self {
        let mut tenants = Self {
            by_name: BTreeMap::new(),
            by_san: HashMap::new(),
        };
        for config in configs {
            let tenant = Arc::new(Tenant::new(config.clone()));
            for san in &config.sans {
                tenants.by_san.insert(san.clone(), tenant.clone());
            }
            tenants.by_name.insert(config.name.clone(), tenant);
        }
        tenants
    }

    /// On whose account the tenant called `name` goes: its own, or that of all others where there is one.
    pub(crate) fn account(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.by_name.get(name).or_else(|| self.by_name.get(OTHER))
    }

    /// The tenant that one of a certificate's names is of.
    pub(crate) fn of_sans(&self, sans: &[String]) -> Option<&Arc<Tenant>> {
        sans.iter().find_map(|san| self.by_san.get(san))
    }
}
