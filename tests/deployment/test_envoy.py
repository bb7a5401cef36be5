"""Envoy, as configured in deploy/mesh/envoy: balancing, draining, gRPC-Web and JSON before two real servers."""

import json
import struct
import tempfile
import unittest
import urllib.error
import urllib.request

from pair import Balancer, Load, Observed
from places import DEPLOY, ROOT, output_of
from ports import free_port

from baichuan.v1 import inference_pb2, sampling_pb2

CONFIG = DEPLOY / "mesh/envoy/envoy.yaml"
CALLS = 400


def envoy(a, b):
    port, admin = free_port(), free_port()
    places = {
        "port_value: 50051": f"port_value: {a.port}", "port_value: 50052": f"port_value: {b.port}",
        "port_value: 8080": f"port_value: {port}", "port_value: 9901": f"port_value: {admin}",
    }
    command = ["envoy", "--config-path", "{config}", "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]
    return Balancer(CONFIG, places, command), f"127.0.0.1:{port}"


def post(address, path, body, content_type, **headers):
    headers = {"content-type": content_type, **{k.replace("_", "-"): v for k, v in headers.items()}}
    request = urllib.request.Request(f"http://{address}/{path}", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.headers, answer.read()


class Envoy(unittest.TestCase):
    def test_the_configuration_is_valid(self):
        output_of("envoy", "--mode", "validate", "--config-path", CONFIG, cwd=ROOT)

    def test_the_descriptors_are_those_of_the_protocol(self):
        with tempfile.NamedTemporaryFile() as file:
            output_of(CONFIG.with_name("make-descriptors.sh"), file.name)
            self.assertEqual(file.read(), CONFIG.with_name("descriptors.bin").read_bytes())

    def test_calls_are_spread_and_a_killed_server_fails_none(self):
        with Observed() as a, Observed() as b:
            balancer, address = envoy(a, b)
            with balancer, Load(address) as load:
                load.ready()
                load.run(CALLS)
                self.assertEqual((load.failures, load.retries), ([], {}))
                shares = [server.ended("Generate") for server in (a, b)]
                self.assertEqual(sum(shares), CALLS)
                # By running calls, two servers compared at random: even in the long run, not to the call.
                self.assertLessEqual(abs(shares[0] - shares[1]) / CALLS, 0.25, shares)
                load.run(CALLS, at=load.done + CALLS // 3, then=a.process.kill)
                self.assertEqual(load.failures, [], balancer.said())
                print(f"\nEnvoy: {shares[0]} and {shares[1]} of {CALLS} calls; after the kill {dict(load.retries)} retried by the client")

    def test_a_server_that_drains_gets_no_new_calls_and_none_has_to_be_retried(self):
        with Observed("shutdown.drain_delay=6s") as a, Observed() as b:
            balancer, address = envoy(a, b)
            with balancer, Load(address) as load:
                load.ready()
                load.run(CALLS, at=CALLS // 3, then=a.terminate)
                self.assertEqual((load.failures, load.retries), ([], {}), balancer.said())
                self.assertEqual(a.wait(), 0)


class OtherWires(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.a = cls.enterClassContext(Observed())
        balancer, cls.address = envoy(cls.a, cls.a)
        cls.enterClassContext(balancer)
        with Load(cls.address) as load:
            load.ready()
        sampling, stopping = {"temperature": 0}, {"max_tokens": 5, "ignore_eos": True}
        cls.request = {"token_ids": {"ids": [3, 4, 5]}, "sampling": sampling, "stopping": stopping}

    def test_json_in_and_out(self):
        body = json.dumps({"request": self.request}).encode()
        _, answer = post(self.address, "baichuan.v1.InferenceService/GenerateUnary", body, "application/json")
        answer = json.loads(answer)
        self.assertEqual(answer["usage"]["completion_tokens"], 5)
        self.assertEqual(answer["choices"][0]["finish_reason"], "FINISH_REASON_LENGTH")

    def test_a_stream_as_server_sent_events(self):
        body = json.dumps(self.request).encode()
        headers, answer = post(self.address, "baichuan.v1.InferenceService/Generate", body, "application/json", accept="text/event-stream")
        self.assertEqual(headers["content-type"], "text/event-stream")
        events = [json.loads(line.removeprefix(b"data: ")) for line in answer.split(b"\n\n") if line]
        self.assertIn("prompt_info", events[0])
        self.assertIn("finish", events[-1])

    def test_a_wrong_field_is_a_bad_request_that_names_it(self):
        body = json.dumps({"request": {**self.request, "sampling": {"top_p": 7}}}).encode()
        with self.assertRaises(urllib.error.HTTPError) as caught:
            post(self.address, "baichuan.v1.InferenceService/GenerateUnary", body, "application/json")
        with caught.exception as error:
            self.assertEqual(error.code, 400)
            self.assertIn("top_p", error.read().decode())

    def test_grpc_web_from_a_listed_origin(self):
        message = inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=[3, 4, 5]),
            sampling=sampling_pb2.SamplingParams(temperature=0),
            stopping=sampling_pb2.StoppingParams(max_tokens=5, ignore_eos=True),
        ).SerializeToString()
        frame = struct.pack(">BI", 0, len(message)) + message
        headers, answer = post(
            self.address, "baichuan.v1.InferenceService/Generate", frame, "application/grpc-web+proto", origin="http://localhost:5173", x_grpc_web="1"
        )
        self.assertEqual(headers["access-control-allow-origin"], "http://localhost:5173")
        frames = []
        while answer:
            flag, length = struct.unpack(">BI", answer[:5])
            frames.append((flag, answer[5 : 5 + length]))
            answer = answer[5 + length :]
        flag, trailers = frames[-1]
        self.assertEqual(flag, 0x80)
        self.assertIn(b"grpc-status:0", trailers)
        events = [inference_pb2.GenerateResponse.FromString(data) for flag, data in frames[:-1]]
        self.assertEqual(events[-1].finish.usage.completion_tokens, 5)

    def test_the_operators_service_is_not_let_through(self):
        with self.assertRaises(urllib.error.HTTPError) as caught:
            post(self.address, "baichuan.v1.AdminService/Drain", b"\0\0\0\0\0", "application/grpc-web+proto")
        with caught.exception as error:
            self.assertEqual(error.code, 403)


if __name__ == "__main__":
    unittest.main()
