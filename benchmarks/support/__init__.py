"""What benchmarks share: servers, and programs that run beside what is measured."""
