"""Data sets that somebody cut before, by layout: each module knows one and makes its origins."""
