"""Reflection, both versions, as grpcurl and its kin use it."""

import unittest

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from server import Server

SERVICES = {
    "baichuan.v1.InferenceService",
    "baichuan.v1.ModelService",
    "baichuan.v1.ControlService",
    "grpc.health.v1.Health",
}


class ReflectionTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(Server())

    def test_both_versions_list_the_services_and_describe_them(self):
        for version in ("v1", "v1alpha"):
            # The messages of both are the same on the wire.
            ask = self.server.channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            questions = [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="baichuan.v1.GenerateRequest"),
            ]
            listing, file = ask(iter(questions))
            listed = {service.name for service in listing.list_services_response.service}
            self.assertLessEqual(SERVICES, listed, version)
            described = [
                descriptor_pb2.FileDescriptorProto.FromString(encoded).name
                for encoded in file.file_descriptor_response.file_descriptor_proto
            ]
            self.assertIn("baichuan/v1/inference.proto", described, version)

    def test_a_client_that_knows_nothing_can_call_by_reflection_alone(self):
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(self.server.channel))
        method = pool.FindServiceByName("baichuan.v1.InferenceService").FindMethodByName("Tokenize")
        request = message_factory.GetMessageClass(method.input_type)(text="hello")
        call = self.server.channel.unary_unary(
            "/baichuan.v1.InferenceService/Tokenize",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        self.assertGreater(len(call(request).token_ids), 0)


if __name__ == "__main__":
    unittest.main()
