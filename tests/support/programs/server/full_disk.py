"""Write a request log to a disk that is full after 1,000 bytes, and then isn't. Argument: the file."""

import resource
import signal
import sys
import time

from finx_streamer.server.request_log import RequestLog

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
log = RequestLog(sys.argv[1])
for number in range(98):
    log.add({"number": number})
    time.sleep(0.001)  # several writes
while not log._entries.empty():
    time.sleep(0.001)
time.sleep(0.1)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
for number in (98, 99):
    log.add({"number": number})
log.close()
