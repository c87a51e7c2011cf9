"""Models from Python: list, build and load them, with arguments that are checked."""

from __future__ import annotations

from vitrail.api.arguments import checked
from vitrail.models import registry
from vitrail.weights import loading

create_model = checked(registry.create_model)
list_models = checked(registry.list_models)
load_model = checked(loading.load_model)
