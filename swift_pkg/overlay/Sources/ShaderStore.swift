import Foundation

/// What is known of one compiled library on disk.
struct ShaderEntry: Codable {
  /// Name of the file, in the folder of the index.
  var file: String
  var sha256: String
  var variant: ShaderVariant
  /// What the compiler calls itself.
  var compiler: String
  /// The oldest macOS that can load it, as "15.0".
  var minimumOS: String

  enum CodingKeys: String, CodingKey {
    case file, sha256, variant, compiler
    case minimumOS = "minimum_os"
  }

  /// The file, when it is there and is the one that was written.
  func verified(in folder: URL, on system: OperatingSystemVersion) throws -> URL {
    guard !file.contains("/"), !file.hasPrefix(".") else {
      throw ShaderStoreError(description: "\(file) is not a plain file name")
    }
    let needed = minimumOS.split(separator: ".").map { Int($0) ?? 0 } + [0, 0]
    guard (needed[0], needed[1]) <= (system.majorVersion, system.minorVersion) else {
      throw ShaderStoreError(description: "\(file) needs macOS \(minimumOS)")
    }
    let path = folder.appendingPathComponent(file)
    guard ShaderText.hexadecimal(of: try Data(contentsOf: path)) == sha256 else {
      throw ShaderStoreError(description: "\(file) is damaged")
    }
    return path
  }
}

struct ShaderStoreError: Error, CustomStringConvertible {
  let description: String
}

/// The libraries that are shipped beside ours: `shaders/index.json` and the files that it names.
struct ShaderPack {
  struct Index: Codable {
    var format: Int
    var libraries: [String: ShaderEntry]
  }

  static let format = 1
  let folder: URL
  let libraries: [String: ShaderEntry]

  /// Nil when there is no pack; throws when there is one that cannot be used.
  init?(folder: URL) throws {
    let index = folder.appendingPathComponent("index.json")
    guard FileManager.default.fileExists(atPath: index.path) else { return nil }
    let content = try JSONDecoder().decode(Index.self, from: Data(contentsOf: index))
    guard content.format == Self.format else {
      throw ShaderStoreError(description: "shader pack format \(content.format) is not known")
    }
    self.folder = folder
    libraries = content.libraries
  }
}

/// The user's own libraries: one folder a key, with the library and `entry.json`.
///
/// A folder is written under a temporary name and renamed, so that it is whole or absent; of two
/// processes that store the same key, the first wins and the other's copy goes.
struct ShaderCache {
  static let library = "library.metallib"
  let folder: URL

  private func place(of key: String) -> URL {
    folder.appendingPathComponent("shaders", isDirectory: true).appendingPathComponent(key)
  }

  /// The stored library, or nil. A damaged entry is removed and reported.
  func find(_ key: String, on system: OperatingSystemVersion) throws -> URL? {
    let place = place(of: key)
    guard FileManager.default.fileExists(atPath: place.path) else { return nil }
    do {
      let facts = try Data(contentsOf: place.appendingPathComponent("entry.json"))
      let entry = try JSONDecoder().decode(ShaderEntry.self, from: facts)
      return try entry.verified(in: place, on: system)
    } catch {
      remove(key)
      throw error
    }
  }

  func remove(_ key: String) {
    // Renamed first: another process never sees half of it.
    let away = folder.appendingPathComponent("shaders")
      .appendingPathComponent(".removed-\(UUID().uuidString)")
    guard rename(place(of: key).path, away.path) == 0 else { return }
    try? FileManager.default.removeItem(at: away)
  }

  /// Store `library` under `key` and return where it lies.
  func store(_ library: URL, as key: String, variant: ShaderVariant, compiler: String) throws -> URL
  {
    let place = place(of: key)
    let parent = place.deletingLastPathComponent()
    let manager = FileManager.default
    try manager.createDirectory(
      at: parent, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
    let partial = parent.appendingPathComponent(".partial-\(UUID().uuidString)")
    try manager.createDirectory(at: partial, withIntermediateDirectories: false)
    defer { try? manager.removeItem(at: partial) }

    let content = try Data(contentsOf: library)
    try content.write(to: partial.appendingPathComponent(Self.library))
    let entry = ShaderEntry(
      file: Self.library, sha256: ShaderText.hexadecimal(of: content), variant: variant,
      compiler: compiler, minimumOS: OfflineShaderCompiler.minimumOS)
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .prettyPrinted]
    try encoder.encode(entry).write(to: partial.appendingPathComponent("entry.json"))
    // Fails when the place is taken: another process stored the same key, which is as good.
    if rename(partial.path, place.path) != 0, !manager.fileExists(atPath: place.path) {
      throw ShaderStoreError(description: "\(place.path): \(String(cString: strerror(errno)))")
    }
    return place.appendingPathComponent(Self.library)
  }
}
