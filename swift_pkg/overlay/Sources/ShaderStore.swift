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

  /// Throw unless the file that `read` returns is the one that was written, and fits `system`.
  func verify(on system: OperatingSystemVersion, read: (String) throws -> Data) throws {
    guard !file.contains("/"), !file.hasPrefix(".") else {
      throw ShaderStoreError(description: "\(file) is not a plain file name")
    }
    let needed = minimumOS.split(separator: ".").map { Int($0) ?? 0 } + [0, 0]
    guard (needed[0], needed[1]) <= (system.majorVersion, system.minorVersion) else {
      throw ShaderStoreError(description: "\(file) needs macOS \(minimumOS)")
    }
    guard ShaderText.hexadecimal(of: try read(file)) == sha256 else {
      throw ShaderStoreError(description: "\(file) is damaged")
    }
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

  /// The library of `key`, or nil. Who can write to a pack can replace the library beside it, too:
  /// nothing is asked about its owner.
  func find(_ key: String, on system: OperatingSystemVersion) throws -> URL? {
    guard let entry = libraries[key] else { return nil }
    try entry.verify(on: system) { try Data(contentsOf: folder.appendingPathComponent($0)) }
    return folder.appendingPathComponent(entry.file)
  }
}

/// The user's own libraries: one folder a key, with the library and `entry.json`.
///
/// What others may have put there is not read, nor written to: code in it would run on the GPU with
/// this user's data. Such a cache counts as absent, with the reason.
///
/// A folder is written under a temporary name and renamed, so that it is whole or absent; of two
/// processes that store the same key, the first wins and the other's copy goes.
struct ShaderCache {
  static let library = "library.metallib"
  private static let entry = "entry.json"
  private static let shaders = "shaders"
  /// Sane sizes, in bytes: a library has tens of KiB.
  private static let mostOfLibrary = 64 << 20
  private static let mostOfEntry = 1 << 20

  let folder: URL
  var user = geteuid()

  private var parent: URL { folder.appendingPathComponent(Self.shaders, isDirectory: true) }

  private func place(of key: String) -> URL { parent.appendingPathComponent(key) }

  /// The folder of all entries, or nil; throws where others can write to it or to its parent.
  private func open() throws -> PrivateFolder? {
    try PrivateFolder(folder, user: user)?.folder(Self.shaders)
  }

  /// The stored library, or nil. A damaged entry is removed and reported.
  func find(_ key: String, on system: OperatingSystemVersion) throws -> URL? {
    guard let entries = try open() else { return nil }
    do {
      guard let kept = try entries.folder(key) else { return nil }
      let facts = try kept.read(Self.entry, most: Self.mostOfEntry)
      let entry = try JSONDecoder().decode(ShaderEntry.self, from: facts)
      try entry.verify(on: system) { try kept.read($0, most: Self.mostOfLibrary) }
      return place(of: key).appendingPathComponent(entry.file)
    } catch is PrivateFolder.Missing {
      discard(key)
      return nil
    } catch {
      discard(key)
      throw error
    }
  }

  /// Take the entry away, if the cache is ours alone.
  func remove(_ key: String) {
    if (try? open()) != nil { discard(key) }
  }

  private func discard(_ key: String) {
    // Renamed first: another process never sees half of it.
    let away = parent.appendingPathComponent(".removed-\(UUID().uuidString)")
    guard rename(place(of: key).path, away.path) == 0 else { return }
    try? FileManager.default.removeItem(at: away)
  }

  /// Store `library` under `key` and return where it lies.
  func store(_ library: URL, as key: String, variant: ShaderVariant, compiler: String) throws -> URL
  {
    let place = place(of: key)
    for each in [folder, parent] { try make(each) }
    guard try open() != nil else {
      throw ShaderStoreError(description: "\(parent.path) is gone")
    }
    let partial = parent.appendingPathComponent(".partial-\(UUID().uuidString)")
    try make(partial)
    defer { try? FileManager.default.removeItem(at: partial) }

    let content = try Data(contentsOf: library)
    try write(content, to: partial.appendingPathComponent(Self.library))
    let entry = ShaderEntry(
      file: Self.library, sha256: ShaderText.hexadecimal(of: content), variant: variant,
      compiler: compiler, minimumOS: OfflineShaderCompiler.minimumOS)
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .prettyPrinted]
    try write(encoder.encode(entry), to: partial.appendingPathComponent(Self.entry))
    // Fails when the place is taken: another process stored the same key, which is as good.
    if rename(partial.path, place.path) != 0, !FileManager.default.fileExists(atPath: place.path) {
      throw ShaderStoreError(description: "\(place.path): \(String(cString: strerror(errno)))")
    }
    return place.appendingPathComponent(Self.library)
  }

  /// Make a folder, whatever the umask, unless it is there.
  private func make(_ folder: URL) throws {
    try FileManager.default.createDirectory(
      at: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
  }

  private func write(_ content: Data, to file: URL) throws {
    let attributes: [FileAttributeKey: Any] = [.posixPermissions: 0o600]
    guard
      FileManager.default.createFile(atPath: file.path, contents: content, attributes: attributes)
    else { throw ShaderStoreError(description: "\(file.path) cannot be written") }
  }
}
