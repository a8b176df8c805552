"""What maintains this repository; no part of the library or its commands."""
