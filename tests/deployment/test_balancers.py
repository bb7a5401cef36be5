"""nginx and HAProxy, as configured in deploy/balancers, before two real servers under load."""

import shutil
import time
import unittest

import grpc

from baichuan.v1 import inference_pb2, inference_pb2_grpc
from pair import Balancer, Load, Observed
from places import DEPLOY, output_of
from ports import free_port

CALLS = 120


def nginx(a, b, changes=None):
    port = free_port()
    places = {"127.0.0.1:50051": a.address, "127.0.0.1:50052": b.address, "127.0.0.1:8080": f"127.0.0.1:{port}", "/run/nginx.pid": "nginx.pid", **(changes or {})}
    command = ["nginx", "-p", "{folder}", "-c", "{config}", "-g", "daemon off;"]
    return Balancer(DEPLOY / "balancers/nginx.conf", places, command), f"127.0.0.1:{port}"


def haproxy(a, b):
    port, stats = free_port(), free_port()
    places = {"127.0.0.1:50051": a.address, "127.0.0.1:50052": b.address, "127.0.0.1:8080": f"127.0.0.1:{port}", "127.0.0.1:8404": f"127.0.0.1:{stats}"}
    return Balancer(DEPLOY / "balancers/haproxy.cfg", places, ["haproxy", "-db", "-f", "{config}"]), f"127.0.0.1:{port}"


class Balanced:
    """What every balancer must show; `start` is the one that is tried."""

    start = None

    def test_calls_are_spread_evenly_and_a_killed_server_fails_none(self):
        with Observed() as a, Observed() as b:
            balancer, address = type(self).start(a, b)
            with balancer, Load(address) as load:
                load.ready()
                load.run(CALLS)
                self.assertEqual((load.failures, load.retries), ([], {}))
                shares = [server.ended("Generate") for server in (a, b)]
                self.assertEqual(sum(shares), CALLS)
                self.assertLessEqual(abs(shares[0] - shares[1]) / CALLS, 0.10, shares)

                load.run(CALLS, at=load.done + CALLS // 3, then=a.process.kill)
                self.assertEqual(load.failures, [], balancer.said())
                self.assertGreater(b.ended("Generate"), shares[1] + CALLS // 3)
                print(f"\n{type(self).__name__}: {shares[0]} and {shares[1]} of {CALLS} calls; after the kill {dict(load.retries)} retried, none failed")


class Nginx(Balanced, unittest.TestCase):
    start = staticmethod(nginx)

    def test_a_stream_of_inputs_is_bounded_neither_in_sum_nor_by_its_pauses(self):
        # What bounds other calls, made small: 16 KiB and a second.
        bounds = {"client_max_body_size 32m;": "client_max_body_size 16k; client_body_timeout 1s;"}
        text = "fever and chills " * 20
        with Observed() as a, Observed() as b:
            balancer, address = nginx(a, b, bounds)
            with balancer, Load(address) as load:
                load.ready()
                stub = inference_pb2_grpc.InferenceServiceStub(load.channels[0])
                with self.assertRaises(grpc.RpcError):
                    stub.Tokenize(inference_pb2.TokenizeRequest(text=text * 60), timeout=30)

                def inputs():
                    for index in range(60):
                        yield inference_pb2.EmbedStreamRequest(index=index, input=inference_pb2.EmbedInput(text=text))
                        if index == 30:
                            time.sleep(3)

                answers = list(stub.EmbedStream(inputs(), timeout=120))
                self.assertEqual(sorted(a.index for a in answers if a.WhichOneof("result") == "embedding"), list(range(60)), answers[:1])

    def test_the_configuration_is_valid(self):
        output_of("nginx", "-t", "-c", DEPLOY / "balancers/nginx.conf")


class Haproxy(Balanced, unittest.TestCase):
    start = staticmethod(haproxy)

    def test_the_configuration_is_valid(self):
        output_of("haproxy", "-c", "-f", DEPLOY / "balancers/haproxy.cfg")

    def test_a_server_that_drains_gets_no_new_calls_and_none_has_to_be_retried(self):
        with Observed("shutdown.drain_delay=4s") as a, Observed() as b:
            balancer, address = haproxy(a, b)
            with balancer, Load(address) as load:
                load.ready()
                load.run(CALLS, at=CALLS // 3, then=a.terminate)
                self.assertEqual((load.failures, load.retries), ([], {}), balancer.said())
                self.assertEqual(a.wait(), 0)


for program in ("nginx", "haproxy"):
    assert shutil.which(program), f"{program} is needed (Debian: {program})"

if __name__ == "__main__":
    unittest.main()
