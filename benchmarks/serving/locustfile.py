"""Clients for locust: encoded photographs of mixed sizes, each answer held against the model's own, bit for bit."""

import hashlib
import json
import os
import random
import time
from pathlib import Path

import gevent
from locust import FastHttpUser, constant, events, task
from locust.exception import StopUser

WORK = Path(os.environ["LOAD_TEST_WORK"])
LIMIT = int(os.environ["LOAD_TEST_REQUESTS"])
BODIES = [path.read_bytes() for path in sorted(WORK.glob("body-*.json"))]
EXPECTED = [set(hashes) for hashes in json.loads((WORK / "expected.json").read_text())]
counts = {"sent": 0, "right": 0, "wrong": 0, "refused": 0, "failed": 0}
times = {"first": 0.0, "last": 0.0}


class Photographer(FastHttpUser):
    """Sends the next photograph as soon as it has the answer to the last."""

    wait_time = constant(0)
    network_timeout = connection_timeout = 120

    @task
    def predict(self):
        if counts["sent"] >= LIMIT:
            # By another greenlet: quitting waits for all users, this one too.
            gevent.spawn(self.environment.runner.quit)
            raise StopUser
        counts["sent"] += 1
        times["first"] = times["first"] or time.monotonic()
        number = random.randrange(len(BODIES))
        path = f"/v1/models/{os.environ['LOAD_TEST_MODEL']}:predict"
        with self.client.post(path, data=BODIES[number], name="predict", catch_response=True) as response:
            if response.status_code == 429:
                counts["refused"] += 1
                response.failure("refused")
            elif response.status_code != 200:
                counts["failed"] += 1
                response.failure(f"status {response.status_code}")
            elif hashlib.sha256(response.content).hexdigest() in EXPECTED[number]:
                counts["right"] += 1
                response.success()
            else:
                counts["wrong"] += 1
                response.failure("another answer than the model's")
            times["last"] = time.monotonic()
            if counts["sent"] == min(1000, LIMIT):
                (WORK / "warm").touch()


@events.quitting.add_listener
def report(environment, **_):
    """Leave the counts for whoever started the run."""
    stats = environment.stats.total
    tree = counts | {str(p): stats.get_response_time_percentile(p / 100) for p in (50, 95, 99)}
    (WORK / "counts.json").write_text(json.dumps(tree | {"seconds": times["last"] - times["first"]}))
    environment.process_exit_code = 0
