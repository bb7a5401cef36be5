"""Starts the real server on a free port and waits until it is ready."""

import json
import os
import signal
import subprocess
import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baichuan.v1 import admin_pb2_grpc, control_pb2_grpc, inference_pb2_grpc, model_pb2_grpc

READINESS = "baichuan.v1.InferenceService"
STARTUP_SECONDS = 120
DRAIN_SECONDS = 60


class Server:
    """The binary with the checkpoint named by the environment; a context manager."""

    def __init__(self, *settings, checkpoint=None):
        """With another name of the checkpoint's folder, if one is given; the server works in that folder."""
        folder = os.environ["BAICHUAN_CHECKPOINT"]
        command = [
            os.environ["BAICHUAN_SERVER_BINARY"], "serve",
            "--model", checkpoint or folder, "--model-name", "m1",
            "--listen", "127.0.0.1:0", "--admin-listen", "off", "--log-format", "json",
            "--set", "engine.cache.context_tokens=16384",
        ]
        for setting in settings:
            command += ["--set", setting]
        env = {k: v for k, v in os.environ.items() if not k.startswith("BAICHUAN_")}
        self.log = []
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=folder if checkpoint else None)
        self.address = self._address("gRPC listens")
        self.channel = grpc.insecure_channel(self.address)
        self.admin_channel = None
        if any(setting.startswith("listen.admin_grpc=") for setting in settings):
            self.admin_channel = grpc.insecure_channel(self._address("AdminService listens"))
        # A pipe that nobody reads would stop the server once it is full.
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)
        self.control = control_pb2_grpc.ControlServiceStub(self.channel)
        self.admin = self.admin_channel and admin_pb2_grpc.AdminServiceStub(self.admin_channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def __enter__(self):
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.channel.close()
        if self.admin_channel:
            self.admin_channel.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stderr.close()

    def terminate(self):
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        """The exit code once it has ended by itself."""
        return self.process.wait(timeout=DRAIN_SECONDS)

    def _wait_until_ready(self):
        deadline = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server exited with {self.process.returncode}:\n{''.join(self.log)}")
            try:
                request = health_pb2.HealthCheckRequest(service=READINESS)
                remaining = deadline - time.monotonic()
                for answer in self.health.Watch(request, wait_for_ready=True, timeout=remaining):
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
        raise RuntimeError(f"the server was not ready after {STARTUP_SECONDS} s:\n{''.join(self.log)}")

    def _address(self, told):
        """Where it listens, from its log."""
        for line in self.process.stderr:
            self.log.append(line)
            if told in line:
                return json.loads(line)["address"]
        self.process.stderr.close()
        raise RuntimeError(f"the server ended before it listened:\n{''.join(self.log)}")
