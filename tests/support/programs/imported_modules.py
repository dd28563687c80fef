"""Import modules, then print the top-level modules in memory: imported_modules.py MODULE... [--hide MODULE...]."""

from __future__ import annotations

import argparse
import importlib
import json
import sys

parser = argparse.ArgumentParser()
parser.add_argument("modules", nargs="+")
parser.add_argument("--hide", nargs="*", default=[], help="modules that can't be imported")
arguments = parser.parse_args()
sys.modules.update(dict.fromkeys(arguments.hide))
for module in arguments.modules:
    importlib.import_module(module)
print(json.dumps(sorted({name.partition(".")[0] for name, module in sys.modules.items() if module})))
