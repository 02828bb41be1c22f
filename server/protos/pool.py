"""The descriptors that are served, in a pool of their own.

Every client of the protocol brings the same names along; in the process-wide pool they could
not be loaded beside these.
"""

from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

POOL = DescriptorPool()
for _known in (health_pb2, reflection_pb2):
    POOL.AddSerializedFile(_known.DESCRIPTOR.serialized_pb)
