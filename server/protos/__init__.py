"""The gRPC service's messages: `inference.proto`, and what protoc made of it.

`./build.sh protos` makes it anew.
"""
