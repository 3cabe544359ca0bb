"""Adapters from a session's reports to metrics libraries; each needs its own extra, and imports it when it is made."""
