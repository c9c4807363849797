"""Train in the cloud without uploading the data: private proxy sampling."""

__version__ = "0.1.0"
