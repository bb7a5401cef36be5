"""ControlService, AdminService, health and SIGTERM, as an operator meets them."""

import time
import unittest

import grpc
from grpc_health.v1 import health_pb2

from baichuan.v1 import admin_pb2, control_pb2, inference_pb2, sampling_pb2
from server import READINESS, Server

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


def endless_request(request_id):
    return inference_pb2.GenerateRequest(
        request_id=request_id,
        text="On and on",
        sampling=sampling_pb2.SamplingParams(temperature=0),
        stopping=sampling_pb2.StoppingParams(max_tokens=6000, ignore_eos=True),
    )


def held(load):
    """What sequences hold of a model's memory."""
    return load.running + load.slots_used + sum(pool.blocks_used for pool in load.pools)


def eventually(holds, seconds=20):
    """Asks again until it holds: what an engine reports lags its last event by a step."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class ControlTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(Server("listen.admin_grpc=127.0.0.1:0"))

    def test_the_server_says_what_it_is(self):
        info = self.server.control.GetServerInfo(control_pb2.GetServerInfoRequest())
        self.assertTrue(info.version)
        self.assertTrue(info.ready)
        self.assertFalse(info.draining)
        self.assertEqual((info.default_model, list(info.models)), ("m1", ["m1"]))
        self.assertEqual(info.max_decoding_message_bytes, 32 << 20)

    def test_an_aborted_request_finishes_as_aborted_and_frees_its_memory(self):
        call = self.server.inference.Generate(endless_request("to-abort"))
        next(call)
        self.assertEqual(next(call).WhichOneof("event"), "delta")
        load = self._load()
        self.assertEqual(load.running, 1)
        self.assertTrue(all(pool.blocks_used > 0 for pool in load.pools))
        self.server.control.Abort(control_pb2.AbortRequest(request_id="to-abort"))
        *_, last = call
        self.assertEqual(last.finish.finish_reason, sampling_pb2.FINISH_REASON_ABORTED)
        self.assertTrue(eventually(lambda: held(self._load()) == 0), self._load())

    def test_aborting_nobody_is_not_found(self):
        with self.assertRaises(grpc.RpcError) as raised:
            self.server.control.Abort(control_pb2.AbortRequest(request_id="nobody"))
        self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_the_log_filter_can_be_changed(self):
        before = self.server.admin.SetLogFilter(admin_pb2.SetLogFilterRequest(filter="warn"))
        after = self.server.admin.SetLogFilter(admin_pb2.SetLogFilterRequest(filter=before.previous))
        self.assertEqual(after.previous, "warn")

    def test_health_is_alive_and_ready(self):
        for service in ("", READINESS):
            answer = self.server.health.Check(health_pb2.HealthCheckRequest(service=service))
            self.assertEqual(answer.status, SERVING, service)

    def _load(self):
        [load] = self.server.control.GetLoad(control_pb2.GetLoadRequest()).models
        return load


class EndTest(unittest.TestCase):
    def test_a_drained_server_stays_up_and_takes_nothing_new(self):
        with Server("listen.admin_grpc=127.0.0.1:0") as server:
            watch = server.health.Watch(health_pb2.HealthCheckRequest(service=READINESS))
            self.assertEqual(next(watch).status, SERVING)
            self.assertEqual(server.admin.Drain(admin_pb2.DrainRequest(wait=True)).running, 0)
            self.assertEqual(next(watch).status, NOT_SERVING)
            with self.assertRaises(grpc.RpcError) as raised:
                list(server.inference.Generate(endless_request("late")))
            self.assertEqual(raised.exception.code(), grpc.StatusCode.UNAVAILABLE)
            self.assertTrue(server.control.GetServerInfo(control_pb2.GetServerInfoRequest()).draining)

    def test_sigterm_lets_a_running_stream_finish_and_exits_0(self):
        with Server("shutdown.drain_delay=200ms", "shutdown.drain_timeout=50s") as server:
            watch = server.health.Watch(health_pb2.HealthCheckRequest(service=READINESS))
            self.assertEqual(next(watch).status, SERVING)
            request = endless_request("running")
            request.stopping.max_tokens = 300
            call = server.inference.Generate(request)
            next(call)
            server.terminate()
            self.assertEqual(next(watch).status, NOT_SERVING)
            *_, last = call
            self.assertEqual(last.finish.finish_reason, sampling_pb2.FINISH_REASON_LENGTH)
            self.assertEqual(last.finish.usage.completion_tokens, 300)
            self.assertEqual(server.wait(), 0)


if __name__ == "__main__":
    unittest.main()
