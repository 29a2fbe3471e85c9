"""Read results of benchmarks, compare them, and show them as tables, pages and charts."""
