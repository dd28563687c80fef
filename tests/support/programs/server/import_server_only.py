"""Import the server without the package's own `__init__`, and print the names of all loaded modules.

Argument: the directory of the package.
"""

import sys
import types

package = types.ModuleType("finx_streamer")
package.__path__ = [sys.argv[1]]
sys.modules["finx_streamer"] = package

import finx_streamer.server  # noqa: E402, F401

print(*sys.modules)
