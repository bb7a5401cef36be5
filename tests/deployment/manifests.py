"""Kubernetes objects against the schemas of their kinds: a missing key, a wrong type or an unknown key is an error."""

import importlib
import pkgutil

import kubernetes_validate
import yaml
from cloudcoil.models import istio, keda, prometheus_operator

KUBERNETES = ["1.33", "1.37"]
# Kinds whose schemas no registry has; deploy/README.md says so.
WITHOUT_SCHEMA = {"gateway.networking.k8s.io/v1", "policy.linkerd.io/v1beta3", "policy.linkerd.io/v1alpha1"}


def objects(text):
    return [found for found in yaml.safe_load_all(text) if found]


def problems(found, versions=tuple(KUBERNETES)):
    """What is wrong with an object; nothing if it is fine. Raises `KeyError` for a kind that nothing is known of."""
    version, kind = found["apiVersion"], found["kind"]
    name = f"{kind} {found['metadata']['name']}"
    if version in WITHOUT_SCHEMA:
        return []
    custom = CUSTOM.get((version, kind))
    if custom is None:
        return [f"{name}: {e}" for v in versions for e in _of_kubernetes(found, v)]
    try:
        known = custom.model_validate(found).model_dump(by_alias=True, exclude_unset=True, mode="json")
    except ValueError as error:
        return [f"{name}: {error}"]
    # The models skip what they do not know: what does not come back was unknown.
    return [f"{name}: unknown or changed: {path}" for path in _differences(found, known)]


def _of_kubernetes(found, version):
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError as error:
        raise KeyError(f"{found['apiVersion']} {found['kind']}") from error
    return []


def _differences(left, right, path=""):
    if isinstance(left, dict) and isinstance(right, dict):
        for key in left.keys() | right.keys():
            yield from _differences(left.get(key), right.get(key), f"{path}.{key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for at, (one, other) in enumerate(zip(left, right)):
            yield from _differences(one, other, f"{path}[{at}]")
    elif left != right:
        yield path


def _modules(package):
    yield package
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        yield importlib.import_module(found.name)


def _models():
    for package in (istio, keda, prometheus_operator):
        for module in _modules(package):
            for model in vars(module).values():
                fields = getattr(model, "model_fields", {}) if isinstance(model, type) else {}
                if "api_version" in fields and "kind" in fields:
                    yield (fields["api_version"].default, fields["kind"].default), model


CUSTOM = dict(_models())
