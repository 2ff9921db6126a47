// ShaderStorer CACHE KEY LIBRARY ROUNDS: store, find and sometimes remove one entry, as several
// processes of one user may at the same time. Exits 1 if a found entry is not whole.

import Foundation

@testable import Overlay

let arguments = CommandLine.arguments
let cache = ShaderCache(folder: URL(fileURLWithPath: arguments[1]))
let key = arguments[2]
let library = URL(fileURLWithPath: arguments[3])
let anyVersion = OperatingSystemVersion(majorVersion: 99, minorVersion: 0, patchVersion: 0)

for round in 0..<Int(arguments[4])! {
  do {
    _ = try cache.store(library, as: key, variant: .plain, compiler: "test")
    guard let found = try cache.find(key, on: anyVersion) else { continue }
    guard try Data(contentsOf: found) == Data(contentsOf: library) else { exit(1) }
    if round % 5 == 4 { cache.remove(key) }
  } catch let error as ShaderStoreError {
    // Damage would be an error of ours; a file that another process has just removed is not.
    print(error)
    exit(1)
  } catch {
    continue
  }
}
