"""Maintenance of this repository; no part of the library or its commands."""
