"""Autobahn's fuzzing server, on 127.0.0.1 and a free port. Runs under Python 2.7, told by one argument in JSON:
"spec" is a test specification as `wstest` knows it, without a URL; "certificate" is a PEM file with a key, or null.

`wstest` itself would listen on every interface. The first line printed is JSON as well: "port", "cases", "versions".
The end of stdin ends it.
"""

import json
import platform
import socket
import sys

import pkg_resources
from autobahntestsuite import fuzzing
from twisted.internet import protocol, reactor, ssl, stdio
from twisted.protocols.tls import TLSMemoryBIOFactory

PACKAGES = ("autobahntestsuite", "autobahn", "Twisted")


class EndWithStdin(protocol.Protocol):
    """Whoever started this has ended."""

    def connectionLost(self, reason=None):
        if reactor.running:
            reactor.stop()


def main():
    """Serve until stdin ends."""
    told = json.loads(sys.argv[1])
    # The suite prints as it goes.
    out, sys.stdout = sys.stdout, sys.stderr
    # It compares the port of its URL with the client's Host header, so the port must be known beforehand.
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(8)
    listening.setblocking(False)
    port = listening.getsockname()[1]
    scheme = "wss" if told["certificate"] else "ws"
    factory = fuzzing.FuzzingServerFactory(dict(told["spec"], url=scheme + "://127.0.0.1:" + str(port)))
    serving = factory
    if told["certificate"]:
        context = ssl.DefaultOpenSSLContextFactory(told["certificate"], told["certificate"], ssl.SSL.SSLv23_METHOD)
        serving = TLSMemoryBIOFactory(context, False, factory)
    reactor.adoptStreamPort(listening.fileno(), socket.AF_INET, serving)
    stdio.StandardIO(EndWithStdin())
    versions = [name + " " + pkg_resources.get_distribution(name).version for name in PACKAGES]
    versions.append("Python " + platform.python_version())
    out.write(json.dumps({"port": port, "cases": factory.specCases, "versions": versions}) + "\n")
    out.flush()
    reactor.run()


main()
