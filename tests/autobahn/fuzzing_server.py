"""Autobahn's fuzzing server on 127.0.0.1 and a free port, under Python 2.7. (`wstest` listens on all interfaces.)

Its argument is JSON: "spec" is a `wstest` specification without a URL, and "certificate" a PEM file with key, or null.
It prints one line of JSON ("port", "cases", "versions") and serves until stdin ends.
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
    """Stops the server when stdin ends: then its parent has ended."""

    def connectionLost(self, reason=None):
        if reactor.running:
            reactor.stop()


def main():
    """Serve until stdin ends."""
    settings = json.loads(sys.argv[1])
    # The suite prints to stdout, which is for our JSON.
    out, sys.stdout = sys.stdout, sys.stderr
    # The suite compares the client's Host header with its own URL, so it needs the port first.
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(8)
    listening.setblocking(False)
    port = listening.getsockname()[1]
    certificate = settings["certificate"]
    scheme = "wss" if certificate else "ws"
    factory = fuzzing.FuzzingServerFactory(dict(settings["spec"], url=scheme + "://127.0.0.1:" + str(port)))
    serving = factory
    if settings["certificate"]:
        context = ssl.DefaultOpenSSLContextFactory(
            settings["certificate"], settings["certificate"], ssl.SSL.SSLv23_METHOD
        )
        serving = TLSMemoryBIOFactory(context, False, factory)
    reactor.adoptStreamPort(listening.fileno(), socket.AF_INET, serving)
    stdio.StandardIO(EndWithStdin())
    versions = [name + " " + pkg_resources.get_distribution(name).version for name in PACKAGES]
    versions.append("Python " + platform.python_version())
    out.write(json.dumps({"port": port, "cases": factory.specCases, "versions": versions}) + "\n")
    out.flush()
    reactor.run()


main()
