# SPDX-License-Identifier: Apache-2.0
import logging
import os
from importlib.metadata import entry_points

logger = logging.getLogger(__name__)


def load_plugins_by_group(group):
    allowed = os.environ.get("VLLM_PLUGINS")
    plugins = {}
    for plugin in entry_points(group=group):
        if allowed is None or plugin.name in allowed.split(","):
            try:
                plugins[plugin.name] = plugin.load()
            except Exception:  # pylint: disable=broad-except
                logger.exception("Failed to load plugin %s", plugin.name)
    return plugins


def load_general_plugins():
    for function in load_plugins_by_group("vllm.general_plugins").values():
        function()
