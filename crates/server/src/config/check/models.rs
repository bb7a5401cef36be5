//! The list of models.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use baichuan_engine::{DeviceChoice, DeviceMap, Placement, Topology, TopologyError};

use super::Findings;
use super::engine::engine;
use crate::config::ModelConfig;
use crate::config::raw::{RawConfig, RawEngine, RawModel};

const MAX_MODEL_NAME_BYTES: usize = 128;

pub(super) fn models(
    raw: &RawConfig,
    default_path: Option<PathBuf>,
    must_exist: bool,
    findings: &mut Findings,
) -> Vec<ModelConfig> {
    let alone = !raw.model.is_empty();
    if alone && raw.models.len() > 1 {
        let written = [
            "path",
            "name",
            "dtype",
            "plugin",
            "cache_dtype",
            "isq",
            "adapters",
            "threads",
            "device",
            "device_map",
            "topology",
            "random_weights",
            "engine",
        ];
        let keys: Vec<String> = written.iter().map(|k| format!("model.{k}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        findings.that(false, &keys, || {
            format!("is for a single model, but [[models]] lists {}", raw.models.len())
        });
        return Vec::new();
    }
    let listed: Vec<(String, RawModel)> = match &raw.models[..] {
        [] => vec![("model".into(), raw.model.clone())],
        [one] => vec![("models[0]".into(), one.clone().overridden_by(raw.model.clone()))],
        several => several
            .iter()
            .enumerate()
            .map(|(i, m)| (format!("models[{i}]"), m.clone()))
            .collect(),
    };
    let mut names = HashSet::new();
    let mut models = Vec::new();
    for (key, mut model) in listed {
        if raw.models.is_empty() {
            model.path = model.path.or_else(|| default_path.clone());
        }
        if let Some(model) = one_model(&key, model, &raw.engine, must_exist, findings) {
            let fresh = names.insert(model.name.clone());
            findings.that(fresh, &[&format!("{key}.name"), &format!("{key}.path")], || {
                format!("another model is called {:?} too", model.name)
            });
            models.push(model);
        }
    }
    models
}

pub(super) fn one_model(
    key: &str,
    raw: RawModel,
    common: &RawEngine,
    must_exist: bool,
    findings: &mut Findings,
) -> Option<ModelConfig> {
    let (name_key, path_key) = (format!("{key}.name"), format!("{key}.path"));
    // A single listed model may be overridden from `model`.
    let path_keys = ["model.path", path_key.as_str()];
    let path_keys = if key.starts_with("models[") && key != "models[0]" {
        &path_keys[1..]
    } else {
        &path_keys[..]
    };
    let Some(path) = raw.path else {
        findings.that(false, &[path_key.as_str(), key], || "is missing".into());
        return None;
    };
    findings.that(!must_exist || path.is_dir(), path_keys, || {
        format!("{} is not a folder", path.display())
    });
    let folder = || path.file_name().map(|n| n.to_string_lossy().into_owned());
    let name = raw.name.or_else(folder).unwrap_or_default();
    let printable = name.bytes().all(|b| b.is_ascii_graphic());
    findings.that(
        !name.is_empty() && name.len() <= MAX_MODEL_NAME_BYTES && printable,
        &["model.name", name_key.as_str(), path_key.as_str()],
        || format!("a model's name is 1 to {MAX_MODEL_NAME_BYTES} printable ASCII characters, got {name:?}"),
    );
    if let Some(threads) = raw.threads {
        findings.at_least_one(&format!("{key}.threads"), threads);
    }
    let adapters = raw.adapters.unwrap_or_default();
    for folder in &adapters {
        findings.that(
            !must_exist || folder.is_dir(),
            &["model.adapters", &format!("{key}.adapters")],
            || format!("{} is not a folder", folder.display()),
        );
    }
    let mut placement = placement(key, raw.device, raw.device_map, findings);
    if let Some(path) = raw.topology.as_ref().filter(|path| must_exist || path.exists()) {
        placement.topology = topology(key, path, &placement.map, findings);
    }
    let own = format!("{key}.engine");
    let engine = engine(&own, common.overridden_by(&raw.engine), findings);
    Some(ModelConfig {
        name,
        path,
        plugin: raw.plugin,
        dtype: raw.dtype,
        cache_dtype: raw.cache_dtype,
        isq: raw.isq,
        adapters,
        threads: raw.threads,
        placement,
        topology: raw.topology,
        random_weights: raw.random_weights,
        engine,
    })
}

fn placement(
    key: &str,
    device: Option<DeviceChoice>,
    map: Option<DeviceMap>,
    findings: &mut Findings,
) -> Placement {
    let (device, map) = (device.unwrap_or_default(), map.unwrap_or_default());
    let keys = [format!("{key}.device_map"), "model.device_map".into()];
    let mappable = matches!(device, DeviceChoice::Auto | DeviceChoice::Cuda(0));
    findings.that(
        mappable || map == DeviceMap::Single,
        &[&keys[0], &keys[1]],
        || format!("{map} spreads layers over GPUs, but device is {device}"),
    );
    Placement {
        device,
        map,
        topology: Topology::default(),
    }
}

fn topology(key: &str, path: &Path, map: &DeviceMap, findings: &mut Findings) -> Topology {
    let keys = [format!("{key}.topology"), "model.topology".into()];
    let keys = [keys[0].as_str(), keys[1].as_str()];
    let read = std::fs::read_to_string(path).map_err(|error| error.to_string());
    let topology: Result<Topology, String> =
        read.and_then(|text| text.parse().map_err(|error: TopologyError| error.to_string()));
    match topology {
        Ok(topology) => {
            let agree = !topology.places_layers() || *map == DeviceMap::Single;
            findings.that(agree, &keys, || {
                format!("{} places layers, and so does device_map = {map}", path.display())
            });
            topology
        }
        Err(error) => {
            findings.that(false, &keys, || format!("{}: {error}", path.display()));
            Topology::default()
        }
    }
}
